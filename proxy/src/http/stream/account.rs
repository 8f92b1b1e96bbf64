//! What streams hold, for the overload manager, which resets those that hold most when memory runs out.
//!
//! Nothing is counted as bytes come and go: who holds bytes is known, and asked when somebody has to go. Without the action there
//! are no accounts at all. As in Envoy, only streams of HTTP/2 have one.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use crate::http::h2;
use crate::overload::StreamClasses;

/// Something that holds bytes of a stream.
pub(crate) trait Holder {
    /// How many.
    fn held(&self) -> usize;
}

/// A stream's account.
pub(crate) struct Account {
    downstream: h2::Whole,
    holders: RefCell<Vec<Weak<dyn Holder>>>,
    is_reset: Cell<bool>,
    is_complete: Cell<bool>,
}

/// The accounts of a worker's streams.
pub(crate) struct Accounts {
    classes: Option<StreamClasses>,
    open: RefCell<Vec<Weak<Account>>>,
}

impl Account {
    /// Another one that holds bytes of the stream.
    pub(crate) fn add(&self, holder: Weak<dyn Holder>) {
        self.holders.borrow_mut().push(holder);
    }

    /// The stream has said all: who resets it now only lets go of what is on its way.
    pub(super) fn complete(&self) {
        self.is_complete.set(true);
    }

    /// Whether the overload manager has reset the stream before its end.
    pub(crate) fn is_reset(&self) -> bool {
        self.is_reset.get()
    }

    fn held(&self) -> usize {
        let holders = self.holders.borrow();
        let others = holders.iter().filter_map(Weak::upgrade);
        self.downstream.held() + others.map(|holder| holder.held()).sum::<usize>()
    }

    fn reset(&self) {
        self.is_reset.set(!self.is_complete.get());
        // Envoy's reason.
        self.downstream.reset(h2::Reason::INTERNAL_ERROR);
    }
}

impl Accounts {
    /// None yet; with `classes`, streams get some.
    pub(crate) fn new(classes: Option<StreamClasses>) -> Self {
        let open = RefCell::default();
        Self { classes, open }
    }

    /// An account for a stream, if anybody will look at it.
    pub(crate) fn open(&self, stream: impl FnOnce() -> h2::Whole) -> Option<Rc<Account>> {
        self.classes?;
        let account = Rc::new(Account {
            downstream: stream(),
            holders: RefCell::default(),
            is_reset: Cell::new(false),
            is_complete: Cell::new(false),
        });
        let mut open = self.open.borrow_mut();
        if open.len() == open.capacity() {
            open.retain(|account| account.strong_count() > 0);
            // Not to look again for each that is opened.
            let live = open.len();
            open.reserve(live);
        }
        open.push(Rc::downgrade(&account));
        Some(account)
    }

    /// Resets those that hold most, as far as an action that is in force by `value` says; how many.
    pub(crate) fn reset(&self, value: f64) -> usize {
        let Some(classes) = self.classes else {
            return 0;
        };
        let least = StreamClasses::least_class(value);
        let open = self.open.borrow();
        let mut concerned: Vec<_> = open
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|account| !account.is_reset())
            .filter_map(|account| Some((classes.class_of(account.held())?, account)))
            .filter(|(class, _)| *class >= least)
            .collect();
        concerned.sort_by_key(|(class, _)| std::cmp::Reverse(*class));
        concerned.truncate(StreamClasses::MOST_RESET);
        for (_, account) in &concerned {
            account.reset();
        }
        concerned.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{
        h2::{Connection, FloodLimits, HeadLimits, Options},
        headers::{RequestHeaders, Scheme},
    };
    use http::{HeaderMap, HeaderValue, Method, uri::PathAndQuery};
    use std::sync::Arc;

    struct Full;

    impl Holder for Full {
        fn held(&self) -> usize {
            1 << 20
        }
    }

    #[test]
    fn a_stream_that_has_said_all_is_not_one_that_was_reset() {
        let options = Options {
            max_concurrent_streams: 100,
            stream_window: 70_000,
            connection_window: 100_000,
            head: HeadLimits {
                bytes: 1000,
                count: 10,
            },
            allows_connect_protocol: false,
            is_tolerant: false,
            flood: FloodLimits::USUAL,
        };
        let (near, _far) = tokio::io::duplex(1000);
        let (_connection, requests) = Connection::client(near, options, Arc::default());
        let head = RequestHeaders {
            method: Method::GET,
            scheme: Scheme::Http,
            authority: HeaderValue::from_static("a"),
            path: PathAndQuery::from_static("/"),
            upgrade: None,
            map: HeaderMap::new(),
        };
        let accounts = Accounts::new(Some(StreamClasses::new(10)));
        let holder: Rc<dyn Holder> = Rc::new(Full);
        for is_complete in [false, true] {
            let (_receive, send) = requests.send(&head, false).unwrap();
            let account = accounts.open(|| send.whole()).unwrap();
            account.add(Rc::downgrade(&holder));
            if is_complete {
                account.complete();
            }
            assert_eq!(accounts.reset(1.0), 1);
            assert_eq!(account.is_reset(), !is_complete);
        }
    }
}
