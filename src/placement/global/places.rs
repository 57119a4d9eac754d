//! Where in a JSON text a field stands: from a position to its path, and back.

/// Calls `found(path, offset)` for each key and each value of the text, in order, until it says to stop. Stops by itself at
/// what is no JSON. Paths look like `services[3].shapes[0].tensor`.
fn walk(text: &str, found: &mut dyn FnMut(&str, usize) -> bool) {
    enum Level {
        Object { length: usize },
        Array { length: usize, next: usize },
    }
    let bytes = text.as_bytes();
    let at = |i: usize| bytes.get(i).copied();
    let string_end = |from: usize| {
        let mut i = from + 1;
        while let Some(b) = at(i) {
            match b {
                b'\\' => i += 2,
                b'"' => return i,
                _ => i += 1,
            }
        }
        bytes.len()
    };
    let mut path = String::new();
    let mut levels: Vec<Level> = Vec::new();
    let mut i = 0;
    // A key was read and its value is awaited.
    let mut keyed = false;
    while let Some(b) = at(i) {
        if b.is_ascii_whitespace() || b == b',' || b == b':' {
            i += 1;
            continue;
        }
        if b == b'}' || b == b']' {
            if levels.pop().is_none() {
                return;
            }
            keyed = false;
            i += 1;
            continue;
        }
        match levels.last_mut() {
            Some(Level::Object { length }) if !keyed => {
                if b != b'"' {
                    return;
                }
                let end = string_end(i);
                path.truncate(*length);
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(text.get(i + 1..end).unwrap_or("?"));
                if !found(&path, i) {
                    return;
                }
                i = end + 1;
                keyed = true;
                continue;
            }
            Some(Level::Array { length, next }) => {
                path.truncate(*length);
                path.push_str(&format!("[{next}]"));
                *next += 1;
            }
            _ => {}
        }
        keyed = false;
        if !found(&path, i) {
            return;
        }
        match b {
            b'{' => levels.push(Level::Object { length: path.len() }),
            b'[' => levels.push(Level::Array { length: path.len(), next: 0 }),
            b'"' => i = string_end(i),
            _ => {
                let ends = |c: u8| c.is_ascii_whitespace() || matches!(c, b',' | b']' | b'}');
                while at(i + 1).is_some_and(|c| !ends(c)) {
                    i += 1;
                }
            }
        }
        i += 1;
    }
}

/// The path of the value at or last before a line and column (from 1), as `serde_json` counts them.
pub(super) fn path_at(text: &str, line: usize, column: usize) -> String {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let limit = before + column;
    let mut last = String::new();
    walk(text, &mut |path, offset| {
        if offset < limit {
            path.clone_into(&mut last);
        }
        offset < limit
    });
    last
}

/// The line (from 1) on which the value of a path begins.
pub(super) fn line_of(text: &str, wanted: &str) -> Option<usize> {
    let mut at = None;
    walk(text, &mut |path, offset| {
        if path == wanted {
            at = Some(offset);
        }
        at.is_none()
    });
    let before = text.get(..at?)?;
    Some(before.matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\n \"a\": [1, {\"b\": \"x,]\\\"\"}],\n \"c\": {\"d\": true}\n}";

    #[test]
    fn paths_and_lines() {
        assert_eq!(path_at(TEXT, 2, 8), "a[0]");
        assert_eq!(path_at(TEXT, 2, 18), "a[1].b");
        assert_eq!(path_at(TEXT, 3, 13), "c.d");
        assert_eq!(line_of(TEXT, "c.d"), Some(3));
        assert_eq!(line_of(TEXT, "a[1].b"), Some(2));
        assert_eq!(line_of(TEXT, "nothing"), None);
        // What is no JSON ends the walk.
        assert_eq!(path_at("}{[", 1, 3), "");
        assert_eq!(line_of("{\"a\": [[[", "a[0][0]"), Some(1));
    }
}
