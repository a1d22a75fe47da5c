"""One ASGI application: page, API, SageMaker contract."""
