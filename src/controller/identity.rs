//! Who this controller is: a number of its own, kept with its other files, and the name that hosts keep with it.

use std::fs;
use std::io;
use std::path::Path;

use super::{Paths, lasting};
use crate::api::server;
use crate::wire::holder_name;

/// Digits of the number.
const DIGITS: usize = 12;

/// Names this controller to other operators, and the same to its own next life on this machine.
///
/// # Errors
/// It has no number yet, and none can be written down.
pub(super) fn holder(paths: &Paths) -> io::Result<String> {
    let user = server::user_name(rustix::process::geteuid().as_raw());
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy().into_owned();
    let id = own_id(&paths.identity())?;
    Ok(holder_name(&user, &machine, &id, &paths.dir.display().to_string()))
}

/// The number in `file`, made there if it is not yet; to be called by the one controller of a directory.
fn own_id(file: &Path) -> io::Result<String> {
    let known = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let known = known.trim();
    if known.len() == DIGITS && known.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(known.to_owned());
    }
    let id: String = uuid::Uuid::new_v4().simple().to_string().chars().take(DIGITS).collect();
    lasting::replace(file, format!("{id}\n").as_bytes())?;
    Ok(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_controller_is_the_same_in_its_next_life_and_no_other() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = |dir: &tempfile::TempDir| own_id(&Paths::in_dir(dir.path()).identity()).unwrap();
        let first = id(&one);
        assert_eq!(first.len(), DIGITS);
        assert_eq!(id(&one), first);
        assert_ne!(id(&other), first);
        let file = Paths::in_dir(one.path()).identity();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // A file that was cut by a crash names nobody.
        fs::write(&file, "").unwrap();
        assert_eq!(id(&one).len(), DIGITS);
        let name = holder(&Paths::in_dir(one.path())).unwrap();
        assert!(name.contains(&format!(" #{} (", id(&one))), "{name}");
    }
}
