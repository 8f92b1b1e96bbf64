//! Who claims which name: the documents of all sources, which of them counts, and which are left out and why.
//!
//! A good document is in force; of several with one name that of the first source, then of the first file. Where there is
//! none, the last good version stays as long as somebody still claims the name, or the file that had it cannot be read.

use super::Rejected;
use crate::{
    event::{Key, Object, Objects, Origin, Parsed, ParsedFile, SourceName},
    validation::{Problem, Verdict},
};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

/// All documents, and what is in force because of them.
#[derive(Debug, Default)]
pub(super) struct Claims {
    files: BTreeMap<SourceName, Vec<Arc<ParsedFile>>>,
    claims: HashMap<Key, Vec<Claim>>,
    /// Names with more than one good document.
    contested: BTreeSet<Key>,
    /// Files with a document that is refused.
    faulty: BTreeMap<(SourceName, PathBuf), Arc<ParsedFile>>,
    objects: Objects,
}

/// A document that claims a name.
#[derive(Clone, Debug)]
struct Claim {
    source: SourceName,
    file: Arc<ParsedFile>,
    index: usize,
}

/// What a new inventory changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    /// Objects that are no longer in force, or no longer as they were.
    pub gone: Objects,
    /// Objects that are in force now, or as they are now.
    pub come: Objects,
}

impl Claim {
    fn document(&self) -> &Parsed {
        &self.file.documents[self.index]
    }

    fn object(&self) -> Option<&Arc<Object>> {
        self.document().object.as_ref()
    }

    fn rank(&self) -> (SourceName, &PathBuf, usize) {
        (self.source, &self.file.path, self.index)
    }
}

impl Claims {
    /// What is in force.
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Takes over what an earlier process had in force; the next inventories say what stays of it.
    pub(super) fn adopt(&mut self, objects: Objects) {
        for (key, object) in objects {
            self.objects.entry(key).or_insert(object);
        }
    }

    /// Takes a source's whole state.
    pub(super) fn replace(&mut self, source: SourceName, files: Vec<Arc<ParsedFile>>) -> Changes {
        let old = self.files.remove(&source).unwrap_or_default();
        let (gone, come) = difference(&old, &files);
        let mut touched = HashSet::new();
        for file in gone {
            self.faulty.remove(&(source, file.path.clone()));
            for key in file
                .documents
                .iter()
                .filter_map(|document| document.key.as_ref())
            {
                if let Some(claims) = self.claims.get_mut(key) {
                    claims.retain(|claim| !Arc::ptr_eq(&claim.file, file));
                }
                touched.insert(key.clone());
            }
        }
        for file in come {
            if file
                .documents
                .iter()
                .any(|document| !document.verdict.valid)
            {
                self.faulty
                    .insert((source, file.path.clone()), file.clone());
            }
            for (index, document) in file.documents.iter().enumerate() {
                if let Some(key) = &document.key {
                    let claim = Claim {
                        source,
                        file: file.clone(),
                        index,
                    };
                    self.claims.entry(key.clone()).or_default().push(claim);
                    touched.insert(key.clone());
                }
            }
        }
        self.files.insert(source, files);
        self.settle(touched)
    }

    /// Decides about every name anew.
    pub(super) fn settle_all(&mut self) -> Changes {
        let mut all: HashSet<Key> = self.claims.keys().cloned().collect();
        all.extend(self.objects.keys().cloned());
        self.settle(all)
    }

    fn settle(&mut self, keys: HashSet<Key>) -> Changes {
        let broken = self.broken_files();
        let mut changes = Changes::default();
        for key in keys {
            let old = self.objects.get(&key).cloned();
            let claims = self.claims.get(&key).map_or(&[][..], Vec::as_slice);
            let good = claims.iter().filter(|claim| claim.object().is_some());
            if good.clone().nth(1).is_some() {
                self.contested.insert(key.clone());
            } else {
                self.contested.remove(&key);
            }
            let first = good.min_by(|a, b| a.rank().cmp(&b.rank()));
            let stays = !claims.is_empty()
                || old
                    .as_ref()
                    .is_some_and(|old| broken.contains(old.origin.file.as_ref()));
            let new = match first.and_then(Claim::object) {
                Some(object) => Some(object.clone()),
                None if stays => old.clone(),
                None => None,
            };
            if claims.is_empty() {
                self.claims.remove(&key);
            }
            if same(old.as_ref(), new.as_ref()) {
                continue;
            }
            if let Some(old) = old {
                changes.gone.insert(key.clone(), old);
            }
            match new {
                Some(new) => {
                    changes.come.insert(key.clone(), new.clone());
                    self.objects.insert(key, new);
                }
                None => {
                    self.objects.remove(&key);
                }
            }
        }
        changes
    }

    /// Files with a document that may be any object, because it cannot be read.
    fn broken_files(&self) -> HashSet<String> {
        self.faulty
            .values()
            .flat_map(|file| &file.documents)
            .filter(|document| document.key.is_none() && !document.verdict.valid)
            .map(|document| document.verdict.file.clone())
            .collect()
    }

    /// What is left out, in the order of sources and files.
    pub(super) fn rejected(&self) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for document in self.faulty.values().flat_map(|file| &file.documents) {
            if document.verdict.valid {
                continue;
            }
            let in_force = document.key.as_ref().and_then(|key| self.objects.get(key));
            rejected.push(Rejected {
                verdict: document.verdict.clone(),
                in_force: in_force.map(|object| object.origin.to_string()),
            });
        }
        for key in &self.contested {
            let mut good: Vec<&Claim> = self
                .claims
                .get(key)
                .into_iter()
                .flatten()
                .filter(|claim| claim.object().is_some())
                .collect();
            good.sort_by(|a, b| a.rank().cmp(&b.rank()));
            let mut good = good.into_iter();
            if let Some(first) = good.next().and_then(Claim::object) {
                let others = good.map(|claim| duplicate(&claim.document().verdict, &first.origin));
                rejected.extend(others);
            }
        }
        rejected
    }
}

fn same(old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// What is in one list of files and not in the other; both are sorted by path.
fn difference<'a>(
    old: &'a [Arc<ParsedFile>],
    new: &'a [Arc<ParsedFile>],
) -> (Vec<&'a Arc<ParsedFile>>, Vec<&'a Arc<ParsedFile>>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (olds.peek(), news.peek()) {
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {
                olds.next();
                news.next();
            }
            (Some(a), Some(b)) => match a.path.cmp(&b.path) {
                Ordering::Less => gone.extend(olds.next()),
                Ordering::Greater => come.extend(news.next()),
                Ordering::Equal => {
                    gone.extend(olds.next());
                    come.extend(news.next());
                }
            },
            (Some(_), None) => gone.extend(olds.next()),
            (None, Some(_)) => come.extend(news.next()),
            (None, None) => return (gone, come),
        }
    }
}

fn duplicate(verdict: &Verdict, first: &Origin) -> Rejected {
    let mut verdict = verdict.clone();
    verdict.valid = false;
    verdict.errors.push(Problem {
        path: "metadata.name".to_owned(),
        message: format!("{} is defined at {first} already", verdict.subject()),
        line: verdict.line,
        hint: Some("that one counts; remove one of the two".to_owned()),
    });
    Rejected {
        in_force: Some(first.to_string()),
        verdict,
    }
}
