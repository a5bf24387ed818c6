"""The benchmark suite: `gptfast bench`. suite.py says what is measured and how, machine.py what the machine reaches."""
