//! The only owner of changing state: intents in, actions out, events told.
