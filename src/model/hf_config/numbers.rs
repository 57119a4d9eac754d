//! What Python writes and JSON does not know.

/// Python writes (and reads) `NaN` and `Infinity`, which JSON does not have: they become `null`.
pub(super) fn without_python_numbers(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut quoted, mut rest) = (false, json);
    while let Some((first, after)) = rest.split_first() {
        let word =
            [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|w| rest.starts_with(w));
        match (quoted, first, word) {
            (false, _, Some(word)) => {
                out.extend(b"null");
                rest = rest.get(word.len()..).unwrap_or(&[]);
                continue;
            }
            (true, b'\\', _) => {
                // What is escaped does not end the string.
                let pair = rest.get(..2).unwrap_or(rest);
                out.extend(pair);
                rest = rest.get(pair.len()..).unwrap_or(&[]);
                continue;
            }
            (_, b'"', _) => quoted = !quoted,
            _ => {}
        }
        out.push(*first);
        rest = after;
    }
    out
}
