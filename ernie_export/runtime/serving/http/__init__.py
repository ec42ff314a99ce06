"""An HTTP server for one model with the API of OpenAI's chat completions.

app.py         create_app: the routes, and what surrounds them
service.py     the steps of a request: check, fetch media, preprocess off the event loop, schedule, stream tokens
schema.py      what a request may say          responses.py   what an answer looks like
media.py       data URIs and addresses         fetch.py       addresses, without a way into private networks
guard.py       hosts, keys, sizes              admission.py   limits on concurrent requests and their bytes
metrics.py     Prometheus                      process.py     the command's process: listen, drain, exit
"""
