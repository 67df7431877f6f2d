"""
Serve a model over HTTP, as OpenAI's embeddings are asked for.

Three parts know nothing of each other but what `executor` says: the scheduler (`scheduler`, `row_queue`), which lets
the rows of all requests think together; the protocol (`protocol`, `inputs`, `errors`), which says what requests and
responses are; and the application around them (`app`, `gate`, `connection`, `metrics`, `logs`, `running`).
"""
