"""A trained model behind OpenAI's HTTP interface.

engine.py      many requests on one Decoder: continuous batching
api.py         what requests may hold, and what answers look like
guard.py       who may ask, and how much
app.py         the routes
command.py     `gptfast serve`
"""
