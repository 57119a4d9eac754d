//! `gpudeck snapshot`: hosts and GPUs at this moment, for programs: JSON, CSV or Prometheus' text.

use clap::ValueEnum;

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{show, snapshot_csv, snapshot_prometheus, table};
use crate::api::{Gpu, HostView, Timestamp};

/// The form of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The hosts as the controller's interface has them
    Json,
    /// A row for each GPU, and one for each host without
    Csv,
    /// The text format of Prometheus
    Prometheus,
}

/// `--output csv` and `--output prometheus` are forms of this command alone: they are read as
/// `--format`.
pub fn normalise(arguments: &[String]) -> Vec<String> {
    let other = |word: &str| matches!(word, "csv" | "prometheus");
    if !arguments.iter().skip(1).any(|word| word == "snapshot") {
        return arguments.to_vec();
    }
    let mut out: Vec<String> = Vec::with_capacity(arguments.len());
    let mut format = None;
    let mut words = arguments.iter().peekable();
    while let Some(word) = words.next() {
        let joined = word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o="));
        if let Some(value) = joined.filter(|value| other(value)) {
            format = Some(value.to_owned());
        } else if matches!(word.as_str(), "--output" | "-o")
            && let Some(value) = words.next_if(|next| other(next))
        {
            format = Some(value.clone());
        } else {
            out.push(word.clone());
        }
    }
    out.extend(format.into_iter().flat_map(|value| ["--format".to_owned(), value]));
    out
}

/// Prints the snapshot once every host has been heard of.
pub async fn run(args: &Args, format: Option<Format>) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let snapshot = show::settle(&client).await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_millis();
    let now = Timestamp(u64::try_from(now).unwrap_or(u64::MAX));
    let default = if args.output == Output::Json { Format::Json } else { Format::Csv };
    match format.unwrap_or(default) {
        Format::Json => table::json(&snapshot.hosts)?,
        Format::Csv => table::out(snapshot_csv::csv(&snapshot, now).trim_end())?,
        Format::Prometheus => {
            table::out(snapshot_prometheus::prometheus(&snapshot, now).trim_end())?;
        }
    }
    Ok(Success::Done)
}

/// The GPUs of a host, as far as they can be read.
pub(super) fn gpus(host: &HostView) -> &[Gpu] {
    host.sample.as_ref().map_or(&[], |sample| sample.gpus.list())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_this_command_are_found_wherever_they_stand() {
        let words = |line: &str| -> Vec<String> {
            normalise(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(words("g snapshot --output csv").join(" "), "g snapshot --format csv");
        assert_eq!(words("g snapshot -o prometheus").join(" "), "g snapshot --format prometheus");
        assert_eq!(words("g snapshot --output=csv").join(" "), "g snapshot --format csv");
        assert_eq!(words("g --output csv snapshot").join(" "), "g snapshot --format csv");
        assert_eq!(words("g --output=csv snapshot").join(" "), "g snapshot --format csv");
        assert_eq!(words("g snapshot --output json").join(" "), "g snapshot --output json");
        assert_eq!(words("g plan --output csv").join(" "), "g plan --output csv");
    }
}
