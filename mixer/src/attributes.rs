//! The attributes of a request: which there are ([`Vocabulary`], from the manifests), what this request has ([`Bag`], read in
//! place from the message), and which of them an answer depended on ([`Tracker`]).

mod bag;
mod tracker;
mod vocabulary;

pub(crate) use bag::{Bag, OwnWords};
pub(crate) use tracker::{Record, Tracker, Unrecorded};
pub(crate) use vocabulary::{Slot, Vocabulary};
