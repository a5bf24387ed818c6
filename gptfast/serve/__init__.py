"""A trained model behind OpenAI's HTTP interface.

assistant.py   a model with its tokenizer and its template: messages to token ids
text.py        bytes of tokens to text that may be shown
engine.py      many requests on one Decoder: continuous batching
api.py         what requests may hold, and what answers look like
guard.py       who may ask, and how much
app.py         the routes
command.py     `gptfast serve`
"""
