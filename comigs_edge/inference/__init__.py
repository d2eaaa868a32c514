"""Running models: chat, evaluation, tokens a second."""
