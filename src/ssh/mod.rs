//! SSH on russh: configuration, authentication, host keys, channels.
