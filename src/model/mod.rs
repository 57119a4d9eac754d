//! What a model is, from the headers of its files: never from its weights.
