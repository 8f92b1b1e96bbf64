//! Durations in configuration.

use prost_types::Duration;

/// Checks a duration: at least a millisecond, and whole milliseconds.
pub(crate) fn check(duration: &Duration) -> Result<(), String> {
    let nanos = i128::from(duration.seconds) * 1_000_000_000 + i128::from(duration.nanos);
    if nanos < 1_000_000 {
        return Err("the duration must be at least 1ms".into());
    }
    if nanos % 1_000_000 != 0 {
        return Err("the duration must be a whole number of milliseconds".into());
    }
    Ok(())
}
