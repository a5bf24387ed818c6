"""How good a model is.

loglikelihood.py   log p of continuations, in batches: what the tasks are made of
perplexity.py      bits per byte and perplexity of text, by a sliding window
hellaswag.py       the likeliest of four endings
lambada.py         the last word of a passage
few_shot.py        classification by the likeliest class name; comparison.py sets it beside a fine-tuned classifier
judge.py           responses scored by a language model; responses.py makes them
harness.py         lm-evaluation-harness on our models
cli.py, jobs.py    `gptfast evaluate`
"""
