//! The name of a controller, as a host keeps it with a claim: `ada@bastion #4f1c22d09ab7 (/home/ada/.local/state/…)`.
//!
//! Users and machines have the same names everywhere (`root@localhost`), so the number is what tells one controller
//! from another. It stands before the directory, because names are cut at their end.

use crate::base::text::clean;

/// Longest name that a host keeps.
pub const MAX_HOLDER: usize = 120;

/// Digits of a controller's number.
const DIGITS: std::ops::RangeInclusive<usize> = 8..=32;

/// The name of the controller of `user` on `machine`, with its number (hexadecimal digits) and its directory.
pub fn holder_name(user: &str, machine: &str, id: &str, directory: &str) -> String {
    // The number is not cut off, however long the rest is.
    let (user, machine) = (clean(user, 32), clean(machine, 64));
    clean(&format!("{user}@{machine} #{id} ({directory})"), 200)
}

/// Whether the holder of a claim is the one that calls itself `name`: the number, the machine and the directory tell, for
/// the name of a user is the number of that user while the name service does not answer. One that was written down
/// before controllers had numbers is, if all else is the same.
pub fn is_same_holder(holder: &str, name: &str) -> bool {
    let kept = |name: &str| clean(name, MAX_HOLDER);
    if kept(holder) == kept(name) {
        return true;
    }
    match (split(holder), split(name)) {
        (None, Some((before, after))) => kept(holder) == kept(&format!("{before}{after}")),
        (Some(_), Some(_)) => match (without_user(&kept(holder)), without_user(&kept(name))) {
            (Some(one), Some(other)) => {
                one == other || begins_as(&one, &other) || begins_as(&other, &one)
            }
            _ => false,
        },
        _ => false,
    }
}

/// A name that was cut at its end, as early as its user's name was long, begins as the other one does.
fn begins_as(cut: &str, other: &str) -> bool {
    cut.strip_suffix('…').is_some_and(|cut| other.trim_end_matches('…').starts_with(cut))
}

/// The machine and what follows it, of a name with a number.
fn without_user(name: &str) -> Option<String> {
    let (before, after) = split(name)?;
    let (_, machine) = before.rsplit_once('@')?;
    let number = name.get(before.len()..name.len() - after.len())?;
    Some(format!("{machine}{number}{after}"))
}

/// What stands before and after a name's number.
fn split(name: &str) -> Option<(&str, &str)> {
    let (before, rest) = name.split_once(" #")?;
    let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
    let after = rest.get(digits..)?;
    (DIGITS.contains(&digits) && after.starts_with(" (")).then_some((before, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_the_same_user_and_machine_differ_by_their_number() {
        let one = holder_name("root", "localhost", "4f1c22d09ab7", "/root/d");
        let other = holder_name("root", "localhost", "77aa22d09ab7", "/root/d");
        assert_eq!(one, "root@localhost #4f1c22d09ab7 (/root/d)");
        assert!(is_same_holder(&one, &one));
        assert!(!is_same_holder(&one, &other));
        // While the name service does not answer a user is a number.
        assert!(is_same_holder("uid 0@localhost #4f1c22d09ab7 (/root/d)", &one));
        assert!(is_same_holder("ann@corp@localhost #4f1c22d09ab7 (/root/d)", &one));
        assert!(!is_same_holder("uid 0@elsewhere #4f1c22d09ab7 (/root/d)", &one));
        assert!(!is_same_holder("uid 0@localhost #4f1c22d09ab7 (/root/dd)", &one));
        // As a neighbour's note tells it: another user there holds it, whose processes are not ours to stop.
        assert!(!is_same_holder(&format!("{one}, there as user alice"), &one));
        // As an earlier version wrote it.
        assert!(is_same_holder("root@localhost (/root/d)", &one));
        assert!(!is_same_holder("root@localhost (/root/e)", &one));
        assert!(!is_same_holder("ada@localhost (/root/d)", &one));
        // An earlier version has no claim to what a later one holds.
        assert!(!is_same_holder(&one, "root@localhost (/root/d)"));
    }

    #[test]
    fn a_long_name_that_was_cut_is_recognised() {
        let directory = "/home/ada/".repeat(20);
        let name = holder_name("ada", "m1", "4f1c22d09ab7", &directory);
        assert!(is_same_holder(&clean(&name, MAX_HOLDER), &name));
        let by_number = holder_name("uid 1001", "m1", "4f1c22d09ab7", &directory);
        assert!(is_same_holder(&clean(&by_number, MAX_HOLDER), &name));
        let earlier = clean(&format!("ada@m1 ({directory})"), 200);
        assert!(is_same_holder(&earlier, &name));
        assert!(is_same_holder(&clean(&earlier, MAX_HOLDER), &name));
        let long = holder_name(&"u".repeat(300), &"m".repeat(300), "4f1c22d09ab7", "/d");
        assert!(clean(&long, MAX_HOLDER).contains("#4f1c22d09ab7 "), "{long}");
    }
}
