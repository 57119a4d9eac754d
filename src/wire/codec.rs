//! One JSON message a line, never longer than [`MAX_LINE_BYTES`].

/// What both sides say first; a different number is refused with both versions named.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest line either side reads; a longer one ends the link.
pub const MAX_LINE_BYTES: usize = 4 << 20;
