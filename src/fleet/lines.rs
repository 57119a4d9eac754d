//! Lines of bounded length from a hostile stream.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Room that is kept: the first sample of a host is long, the changes after it are not.
const LINE_KEPT: usize = 4 << 10;

/// Read at once.
const BUFFER: usize = 16 << 10;

/// Reads line by line; a line longer than the limit is an error.
pub(super) struct LineReader<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    max_bytes: usize,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub(super) fn new(reader: R, max_bytes: usize) -> Self {
        Self { reader: BufReader::with_capacity(BUFFER, reader), line: Vec::new(), max_bytes }
    }

    /// The next line without its end; none at the end of the stream. Not to be called again
    /// after it was cancelled.
    pub(super) async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        self.line.shrink_to(LINE_KEPT);
        loop {
            let available = self.reader.fill_buf().await?;
            if available.is_empty() {
                return Ok(if self.line.is_empty() { None } else { Some(&self.line) });
            }
            let end = available.iter().position(|b| *b == b'\n');
            let piece = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
            if self.line.len() + piece.len() > self.max_bytes {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line is longer than {} bytes", self.max_bytes),
                ));
            }
            self.line.extend_from_slice(piece);
            let used = piece.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(&self.line));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded() {
        let mut lines = LineReader::new(&b"one\n\ntwo"[..], 3);
        assert_eq!(lines.next().await.unwrap(), Some(&b"one"[..]));
        assert_eq!(lines.next().await.unwrap(), Some(&b""[..]));
        assert_eq!(lines.next().await.unwrap(), Some(&b"two"[..]));
        assert_eq!(lines.next().await.unwrap(), None);
        let mut long = LineReader::new(&b"four\n"[..], 3);
        assert!(long.next().await.is_err());
    }
}
