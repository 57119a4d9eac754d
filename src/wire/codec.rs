//! One JSON message a line, never longer than [`MAX_LINE_BYTES`].

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// What both sides say first; a different number is refused with both versions named.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest line either side reads; a longer one ends the link.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// Why a line could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Io(#[from] std::io::Error),
    /// The line is longer than [`MAX_LINE_BYTES`].
    #[error("a line is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// The line is not the message that was expected.
    #[error("a line is no message of protocol {PROTOCOL_VERSION}: {0}")]
    NotAMessage(#[from] serde_json::Error),
    /// The line was packed, and cannot be unpacked.
    #[error("a packed line is damaged: {0}")]
    Damaged(String),
}

/// `message` as one line, its line end included.
///
/// # Errors
/// The message cannot be written as JSON, or is longer than [`MAX_LINE_BYTES`].
pub fn encode_line<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    if line.len() > MAX_LINE_BYTES { Err(CodecError::TooLong) } else { Ok(line) }
}

/// Reads lines of bounded length. What was read of an unfinished line is kept when the future of
/// [`Self::next_line`] is dropped, so it may be used in `select!`.
#[derive(Debug)]
pub struct LineReader<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> LineReader<R> {
    /// Reads from `reader`.
    pub fn new(reader: R) -> Self {
        Self { reader, line: Vec::new() }
    }

    /// The next line without its end; `None` at the end of the stream (an unfinished last line is
    /// dropped: its sender was cut off).
    ///
    /// # Errors
    /// The stream broke, or the line is longer than [`MAX_LINE_BYTES`].
    pub async fn next_line(&mut self) -> Result<Option<Vec<u8>>, CodecError> {
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let end = chunk.iter().position(|b| *b == b'\n');
            let piece = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
            if self.line.len() + piece.len() > MAX_LINE_BYTES {
                return Err(CodecError::TooLong);
            }
            self.line.extend_from_slice(piece);
            let used = piece.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }

    /// The next message; `None` at the end of the stream.
    ///
    /// # Errors
    /// As [`Self::next_line`], and when the line is not a `T`.
    pub async fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        match self.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_slice(&line)?)),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    #[tokio::test]
    async fn reads_whole_lines_only() {
        let mut reader = LineReader::new(BufReader::with_capacity(3, &b"1\n[2,3]\nunfin"[..]));
        assert_eq!(reader.next_message::<u32>().await.unwrap(), Some(1));
        assert_eq!(reader.next_message::<Vec<u32>>().await.unwrap(), Some(vec![2, 3]));
        assert!(reader.next_line().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_endless_line_is_refused_before_it_fills_memory() {
        let endless = tokio::io::AsyncReadExt::take(tokio::io::repeat(b'x'), 1 << 40);
        let mut reader = LineReader::new(BufReader::new(endless));
        assert!(matches!(reader.next_line().await, Err(CodecError::TooLong)));
    }
}
