"""`python -m mimo_engine.bench MODEL`: the benches that a CPU can run, one after the other."""

import sys

from mimo_engine.bench import audio, grammar, load, media, overhead, parser, scheduler, step, vision

if len(sys.argv) != 2:
    sys.exit("usage: python -m mimo_engine.bench MODEL")
scheduler.main([])
parser.main([])
step.main(sys.argv[1])
grammar.main(sys.argv[1])
load.main(sys.argv[1])
audio.main([])
media.main([])
vision.main([])
overhead.main([])
