//! `proxy-config log`: a proxy's log levels, shown and changed while it runs.

use proto_component::process::Usage;

/// The levels that Envoy knows.
const LEVELS: &[&str] = &[
    "trace", "debug", "info", "warning", "warn", "error", "critical", "off",
];
/// What a proxy starts with.
const DEFAULT: &str = "warning";

/// The admin pages to post to: one for all loggers (`debug`), one for each that is named (`http:debug,router:trace`). Without
/// a wish the page only shows.
pub(crate) fn paths(levels: &[String], resets: bool) -> Result<Vec<String>, Usage> {
    let mut paths = Vec::new();
    if resets {
        paths.push(format!("/logging?level={DEFAULT}"));
    }
    for wish in levels {
        let (logger, level) = wish.rsplit_once([':', '=']).unwrap_or(("level", wish));
        if !LEVELS.contains(&level) {
            return Err(Usage(format!(
                "--level {wish}: {level:?} is no level; there are {}",
                LEVELS.join(", ")
            )));
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if logger.is_empty() || !logger.chars().all(is_name) {
            return Err(Usage(format!(
                "--level {wish}: write LEVEL or LOGGER:LEVEL"
            )));
        }
        // `all:debug` is istioctl's way to say `debug`.
        let logger = if logger == "all" { "level" } else { logger };
        paths.push(format!("/logging?{logger}={level}"));
    }
    if paths.is_empty() {
        paths.push("/logging".to_owned());
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_for_all_or_for_named_loggers() {
        let wishes = [
            "debug".to_owned(),
            "router:trace".to_owned(),
            "all:off".to_owned(),
        ];
        assert_eq!(
            paths(&wishes, true).unwrap(),
            [
                "/logging?level=warning",
                "/logging?level=debug",
                "/logging?router=trace",
                "/logging?level=off"
            ]
        );
        assert_eq!(paths(&[], false).unwrap(), ["/logging"]);
        for wrong in ["loud", "http:loud", "a b:debug", ":debug"] {
            assert!(paths(&[wrong.to_owned()], false).is_err(), "{wrong}");
        }
    }
}
