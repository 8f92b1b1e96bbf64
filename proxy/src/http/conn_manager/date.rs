//! `date`, written once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

thread_local! {
    static LAST: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// The header's value at `time`.
pub(super) fn header(time: SystemTime) -> HeaderValue {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|(last, value)| {
        if *last != seconds {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            if let Ok(new) = HeaderValue::try_from(text) {
                (*last, *value) = (seconds, new);
            }
        }
        value.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_protocol() {
        let time = UNIX_EPOCH + Duration::from_millis(784_111_777_999);
        assert_eq!(header(time), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
