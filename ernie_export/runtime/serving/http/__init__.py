"""An HTTP server of OpenAI's chat completions around one model: a request in, tokens out.

app.py         create_app: the routes, and what surrounds them
service.py     a request's way: admitted, its media read, preprocessed off the event loop, scheduled, streamed back
schema.py      what a request may say          responses.py   what an answer looks like
media.py       data URIs and addresses         fetch.py       addresses, without a way into private networks
guard.py       hosts, keys, sizes              admission.py   how much is taken on at a time
metrics.py     Prometheus                      process.py     the command's process: listening, draining, leaving
"""
