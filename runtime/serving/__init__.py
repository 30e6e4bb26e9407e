"""Serves a detector over HTTP; `runtime.serving.app: create_app` makes the application. Needs the extra `serve`."""
