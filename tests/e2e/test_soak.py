import asyncio

import pytest
from soak import soak


def test_under_mixed_traffic_and_a_kill_nothing_hangs_or_leaks():
    asyncio.run(soak(10, num_clients=16)).check()


@pytest.mark.prove
@pytest.mark.timeout(0)
def test_an_hour_of_mixed_traffic_of_64_clients_with_a_kill_leaves_nothing():
    report = asyncio.run(soak(3600, num_clients=64, seed=1, settles_s=1200))
    report.check()
