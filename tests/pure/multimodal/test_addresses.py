"""Which addresses are public, and how many ways there are to write one."""

import pytest

from mimo_engine.multimodal.addresses import is_public, literal_address, system_addresses

PUBLIC = [
    "93.184.216.34", "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.255.255",
    "172.32.0.0", "192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "11.0.0.0",
    "2606:2800:220:1::1", "2a00:1450:4001::200e", "2400:cb00::1", "2001:4860:4860::8888",
    "::ffff:93.184.216.34", "64:ff9b::5db8:d822",
]  # fmt: skip

SPECIAL = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.0", "100.127.255.255",
    "127.0.0.1", "127.255.255.255", "169.254.169.254", "172.16.0.0", "172.31.255.255",
    "192.0.0.1", "192.0.0.255", "192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255",
    "198.18.0.0", "198.19.255.255", "198.51.100.1", "203.0.113.255", "224.0.0.1", "239.1.1.1",
    "240.0.0.0", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::93.184.216.34", "fe80::1", "fe80::1%eth0", "fc00::1",
    "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "100::1", "2001:db8::1", "3fff::1",
    "5f00::1", "2002:7f00:1::", "2002:5db8:d822::", "2001::1", "2001:0:7f00:1::", "64:ff9b:1::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1", "4000::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_whole_internet_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", SPECIAL)
def test_an_address_with_a_special_purpose_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("169.254.43518", "169.254.169.254"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("2001:DB8::0001", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_every_spelling_of_an_address_is_read(host, address):
    assert literal_address(host) == address


@pytest.mark.parametrize("host", ["", "example.com", "1.2.3.4.5", "256.1.1.1", "1e9", "a:b", "\0"])
def test_what_is_no_address_is_a_name(host):
    assert literal_address(host) is None


def test_the_system_knows_this_machine():
    assert {"127.0.0.1", "::1"}.issuperset(system_addresses("localhost"))
