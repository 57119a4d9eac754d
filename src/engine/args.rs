//! Looking into the arguments that a spec passes on to an engine.

use super::EngineError;

/// The value of the last of these options in `args`: `--name value`, `--name=value`.
pub(super) fn value<'a>(args: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut found = None;
    for (i, arg) in args.iter().enumerate() {
        if names.contains(&arg.as_str()) {
            found = args.get(i + 1).map(String::as_str).or(found);
        } else if let Some((name, value)) = arg.split_once('=')
            && names.contains(&name)
        {
            found = Some(value);
        }
    }
    found
}

/// Whether one of these options is in `args`.
pub(super) fn has(args: &[String], names: &[&str]) -> bool {
    args.iter().any(|arg| names.contains(&arg.split_once('=').map_or(arg.as_str(), |(n, _)| n)))
}

/// Refuses options that the adapter sets itself; each with where to set it instead.
pub(super) fn refuse_owned(args: &[String], owned: &[(&str, &str)]) -> Result<(), EngineError> {
    for (option, instead) in owned {
        if has(args, &[option]) {
            return Err(EngineError::OwnedSetting {
                setting: (*option).to_owned(),
                hint: format!("remove it from `args`: {instead}"),
            });
        }
    }
    Ok(())
}
