//! The one place where words become a shell command line.

/// Quotes `words` so that a POSIX shell reads back exactly these words.
pub fn shell<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|w| shell_word(w.as_ref())).collect::<Vec<_>>().join(" ")
}

/// Quotes one word for a POSIX shell.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    shell_quoted(word)
}

/// The same in quotes also where it needs none: some servers look for them.
pub fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Whether the name of a host may be put into a command line that a person has written without quotes
/// around it (`ProxyCommand`); as `valid_hostname` of OpenSSH's `ssh.c` has it.
pub fn is_plain_host(name: &str) -> bool {
    let bad = |c: char| "'`\"$\\;&<>|(){},".contains(c) || c.is_whitespace() || c.is_control();
    !name.is_empty() && !name.starts_with('-') && !name.contains(bad)
}

/// The same of the name of a user, in which more is usual; as `valid_ruser` there.
pub fn is_plain_user(name: &str) -> bool {
    let blank_dash =
        name.chars().zip(name.chars().skip(1)).any(|(a, b)| a.is_whitespace() && b == '-');
    let bad = |c: char| "'`\";&<>|(){}".contains(c) || c.is_ascii_control();
    !name.starts_with('-') && !name.contains(bad) && !name.ends_with('\\') && !blank_dash
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn quotes_what_needs_it() {
        assert_eq!(super::shell(&["echo", "it's", "", "$HOME"]), r"echo 'it'\''s' '' '$HOME'");
    }

    proptest! {
        #[test]
        fn a_shell_reads_back_the_words(words in proptest::collection::vec("[^\0]{0,20}", 1..4)) {
            let line = format!("printf '%s\\0' {}", super::shell(&words));
            let out = std::process::Command::new("sh").arg("-c").arg(line).output()?;
            let expected: Vec<u8> = words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat()).collect();
            prop_assert_eq!(out.stdout, expected);
        }
    }
}
