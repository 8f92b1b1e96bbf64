//! What the API server has, put together from the watchers of all kinds.

use super::{Change, Told};
use crate::event::{Event, ParsedFile, SourceName};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// Changes that come together are one; a stream of them is told now and then.
const QUIET: Duration = Duration::from_millis(20);
const CAP: Duration = Duration::from_millis(200);
/// A watcher that fails says so at least this often; one that is silent for longer goes on from where it was.
const SILENCE: Duration = Duration::from_secs(90);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// One kind.
#[derive(Debug, Default)]
struct Kind {
    /// Objects that are known.
    paths: BTreeSet<PathBuf>,
    /// Objects that a new list has told so far.
    listing: Option<BTreeSet<PathBuf>>,
    /// Whether it was ever listed, or is not installed.
    is_known: bool,
    failure: Option<(String, Instant)>,
}

/// All kinds, and their objects by path.
#[derive(Debug)]
pub(super) struct Inventory {
    kinds: Vec<Kind>,
    files: BTreeMap<PathBuf, Arc<ParsedFile>>,
    /// Whether there is something to tell.
    has_news: bool,
    told_failure: Option<String>,
}

impl Inventory {
    /// Of so many kinds, none of them known yet.
    pub(super) fn new(kinds: usize) -> Self {
        Self {
            kinds: (0..kinds).map(|_| Kind::default()).collect(),
            files: BTreeMap::new(),
            has_news: true,
            told_failure: None,
        }
    }

    /// Takes changes and tells the state, until nobody sends or listens any more.
    pub(super) async fn run(
        mut self,
        mut changes: mpsc::Receiver<(usize, Told)>,
        events: &mpsc::Sender<Event>,
    ) {
        loop {
            match tokio::time::timeout(LOOK, changes.recv()).await {
                Ok(Some((index, change))) => self.take(index, change),
                Ok(None) => return,
                Err(_) => self.forget_old_failures(),
            }
            let cap = Instant::now() + CAP;
            loop {
                let quiet = Instant::now() + QUIET;
                match tokio::time::timeout_at(quiet.min(cap), changes.recv()).await {
                    Ok(Some((index, change))) => self.take(index, change),
                    Ok(None) => return,
                    Err(_) => break,
                }
            }
            for event in self.news() {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }

    fn take(&mut self, index: usize, change: Told) {
        let kind = &mut self.kinds[index];
        match change {
            Change::Listing => kind.listing = Some(BTreeSet::new()),
            Change::Object(file) => {
                if let Some(listing) = &mut kind.listing {
                    listing.insert(file.path.clone());
                } else {
                    kind.failure = None;
                }
                kind.paths.insert(file.path.clone());
                self.files.insert(file.path.clone(), file);
                self.has_news = true;
            }
            Change::Gone(file) => {
                kind.failure = None;
                kind.paths.remove(&file.path);
                self.has_news |= self.files.remove(&file.path).is_some();
            }
            Change::Listed => {
                let listed = kind.listing.take().unwrap_or_default();
                let before = mem::replace(&mut kind.paths, listed);
                for path in before.difference(&kind.paths) {
                    self.files.remove(path);
                }
                kind.is_known = true;
                kind.failure = None;
                self.has_news = true;
            }
            Change::Absent => {
                for path in mem::take(&mut kind.paths) {
                    self.files.remove(&path);
                    self.has_news = true;
                }
                self.has_news |= !kind.is_known;
                kind.listing = None;
                kind.is_known = true;
                kind.failure = None;
            }
            Change::Failed(reason) => kind.failure = Some((reason, Instant::now())),
            Change::Denied(reason) => {
                self.has_news |= !kind.is_known;
                kind.listing = None;
                kind.is_known = true;
                kind.failure = Some((reason, Instant::now()));
            }
        }
    }

    /// A watch that has begun again says nothing before something changes.
    fn forget_old_failures(&mut self) {
        for kind in self.kinds.iter_mut().filter(|kind| kind.is_known) {
            kind.failure = kind.failure.take().filter(|(_, at)| at.elapsed() < SILENCE);
        }
    }

    /// What there is to tell: the whole state once it is known, and what stands in the way of reading it.
    fn news(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut failures = self.kinds.iter().filter_map(|kind| kind.failure.as_ref());
        let failure = failures.next().map(|(reason, _)| reason.clone());
        let is_known = self.kinds.iter().all(|kind| kind.is_known);
        let is_listing = self.kinds.iter().any(|kind| kind.listing.is_some());
        let has_recovered = failure.is_none() && self.told_failure.is_some();
        if is_known && !is_listing && (self.has_news || has_recovered) {
            let files = self.files.values().cloned().collect();
            events.push(Event::Inventory(
                SourceName::Cluster,
                files,
                failure.clone(),
            ));
            self.has_news = false;
            self.told_failure.clone_from(&failure);
        }
        if let Some(reason) = failure
            && self.told_failure.as_ref() != Some(&reason)
        {
            self.told_failure = Some(reason.clone());
            events.push(Event::Unreadable(SourceName::Cluster, reason));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Arc<ParsedFile> {
        Arc::new(ParsedFile {
            path: name.into(),
            documents: Vec::new(),
        })
    }

    fn file(name: &str) -> Told {
        Change::Object(named(name))
    }

    fn told(inventory: &mut Inventory) -> Vec<String> {
        let text = |event| match event {
            Event::Inventory(_, files, _) => {
                let names: Vec<String> = files
                    .iter()
                    .map(|file| file.path.display().to_string())
                    .collect();
                names.join(" ")
            }
            Event::Unreadable(_, reason) => format!("failed: {reason}"),
            Event::Mesh(_) => String::new(),
        };
        inventory.news().into_iter().map(text).collect()
    }

    #[test]
    fn the_state_is_told_when_every_kind_is_known() {
        let mut inventory = Inventory::new(2);
        inventory.take(0, Change::Listing);
        inventory.take(0, file("a"));
        inventory.take(0, file("b"));
        inventory.take(0, Change::Listed);
        assert_eq!(told(&mut inventory), [""; 0]);
        inventory.take(1, Change::Absent);
        assert_eq!(told(&mut inventory), ["a b"]);
        assert_eq!(told(&mut inventory), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_is_not_repeated_is_over() {
        let mut inventory = Inventory::new(1);
        inventory.take(0, Change::Listing);
        inventory.take(0, Change::Listed);
        inventory.take(0, Change::Failed("away".into()));
        assert_eq!(told(&mut inventory).len(), 1);
        tokio::time::advance(SILENCE / 2).await;
        inventory.forget_old_failures();
        assert_eq!(told(&mut inventory), [""; 0]);
        tokio::time::advance(SILENCE).await;
        inventory.forget_old_failures();
        assert_eq!(told(&mut inventory), [""]);
    }

    #[test]
    fn a_new_list_drops_what_it_does_not_tell_and_a_failure_nothing() {
        let mut inventory = Inventory::new(1);
        inventory.take(0, Change::Listing);
        inventory.take(0, file("a"));
        inventory.take(0, file("b"));
        inventory.take(0, Change::Listed);
        assert_eq!(told(&mut inventory), ["a b"]);
        inventory.take(0, Change::Failed("away".into()));
        assert_eq!(told(&mut inventory), ["failed: away"]);
        inventory.take(0, Change::Listing);
        inventory.take(0, file("b"));
        assert_eq!(told(&mut inventory), [""; 0]);
        inventory.take(0, Change::Listed);
        assert_eq!(told(&mut inventory), ["b"]);
        inventory.take(0, Change::Gone(named("b")));
        assert_eq!(told(&mut inventory), [""]);
    }
}
