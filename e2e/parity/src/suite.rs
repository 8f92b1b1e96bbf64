//! All groups: finds the files, gives each an address, plays it against both proxies, compares, repeats what differed.

use crate::{
    case::{Case, Group},
    compare::{Verdict, compare, explanations},
    group::{self, Place},
    peer::Oracle,
    run::{self, Outcomes},
};
use anyhow::Context as _;
use futures::StreamExt as _;
use serde_json::Value;
use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often a case that differs is played again before it counts.
const REPEATS: usize = 5;

/// What came of one case.
#[derive(Clone, Debug)]
pub struct Report {
    /// Group.
    pub group: String,
    /// Case.
    pub case: String,
    /// The comparison.
    pub verdict: Verdict,
    /// It agreed only when it was played again.
    pub is_repeated: bool,
    /// Envoy's outcome.
    pub envoy: Value,
    /// Ours.
    pub ours: Value,
    /// It could not be played at all.
    pub error: Option<String>,
}

/// What came of a group, and how long it took.
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// Name.
    pub name: String,
    /// One by case.
    pub cases: Vec<Report>,
    /// Duration.
    pub time: Duration,
}

/// What to run and with what.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Envoy.
    pub oracle: Oracle,
    /// Our proxy.
    pub ours: PathBuf,
    /// Groups at a time.
    pub jobs: usize,
    /// `group` or `group/prefix of a case's name`; all if empty.
    pub patterns: Vec<String>,
}

/// The folder of the package.
#[must_use]
pub fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files of all groups, by name.
///
/// # Errors
/// When the folder can't be read.
pub fn files() -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(home().join("cases"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    Ok(files)
}

/// A group's address: the same in every run if nobody else runs the same group now. It is held by a listening socket.
fn claim(name: &str) -> anyhow::Result<(Ipv4Addr, TcpListener)> {
    let hash = name.bytes().fold(5381_u32, |hash, byte| {
        hash.wrapping_mul(33) ^ u32::from(byte)
    });
    let (high, low) = ((hash >> 8) as u8 % 254 + 1, hash as u8 % 254 + 1);
    for run in 40..120 {
        let address = Ipv4Addr::new(127, run, high, low);
        if let Ok(holder) = TcpListener::bind((address, 9)) {
            return Ok((address, holder));
        }
    }
    anyhow::bail!("no address is free for {name}")
}

/// Where recordings of a group are.
#[must_use]
pub fn recording(name: &str) -> PathBuf {
    home().join("recorded").join(format!("{name}.json"))
}

/// The recorded outcomes of a group.
///
/// # Errors
/// When there are none.
pub fn recorded(name: &str) -> anyhow::Result<Outcomes> {
    let path = recording(name);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

/// A group at its address, with its run's folder.
pub struct Stage {
    /// The group.
    pub group: Group,
    /// Where it runs.
    pub place: Place,
    _dir: tempfile::TempDir,
    _holder: TcpListener,
}

impl Stage {
    /// Reads a group's file and finds it a place.
    ///
    /// # Errors
    /// When the file is not good or no address is free.
    pub fn set(file: &Path) -> anyhow::Result<Self> {
        let name = file
            .file_stem()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let (address, holder) = claim(&name)?;
        let dir = tempfile::Builder::new().prefix("parity-").tempdir()?;
        let place = Place {
            address,
            dir: dir.path().to_string_lossy().into_owned(),
            certs: home().join("certs").to_string_lossy().into_owned(),
        };
        Ok(Self {
            group: group::read(file, &place)?,
            place,
            _dir: dir,
            _holder: holder,
        })
    }

    /// Plays cases with one proxy, in an empty folder.
    ///
    /// # Errors
    /// As [`run::run`].
    pub async fn play(&self, cases: &[&Case], binary: &Path) -> anyhow::Result<Outcomes> {
        for entry in std::fs::read_dir(&self.place.dir)?.filter_map(Result::ok) {
            let _ = std::fs::remove_file(entry.path());
        }
        run::run(&self.group, cases, binary, &self.place).await
    }
}

impl Suite {
    /// Whether a group is wanted at all.
    fn wants_group(&self, name: &str) -> bool {
        self.patterns.is_empty()
            || self
                .patterns
                .iter()
                .any(|pattern| pattern.split('/').next() == Some(name))
    }

    /// Whether a case is wanted.
    #[must_use]
    pub fn wants(&self, group: &str, case: &str) -> bool {
        let full = format!("{group}/{case}");
        self.patterns.is_empty()
            || self
                .patterns
                .iter()
                .any(|pattern| pattern == group || full.starts_with(pattern.as_str()))
    }

    /// Runs everything that is wanted.
    ///
    /// # Errors
    /// When the cases can't be found.
    pub async fn run(&self) -> anyhow::Result<Vec<GroupReport>> {
        let mut reports: Vec<GroupReport> = futures::stream::iter(self.files()?)
            .map(|file| async move { self.group(&file).await })
            .buffer_unordered(self.jobs.max(1))
            .collect()
            .await;
        reports.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(reports)
    }

    /// The files of the groups that are wanted.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = files()?;
        files.retain(|file| {
            file.file_stem()
                .is_some_and(|name| self.wants_group(&name.to_string_lossy()))
        });
        Ok(files)
    }

    async fn group(&self, file: &Path) -> GroupReport {
        let start = Instant::now();
        let name = file
            .file_stem()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let cases = match self.group_cases(file).await {
            Ok(cases) => cases,
            Err(error) => vec![Report {
                group: name.clone(),
                case: "the group".to_owned(),
                verdict: Verdict::default(),
                is_repeated: false,
                envoy: Value::Null,
                ours: Value::Null,
                error: Some(format!("{error:#}")),
            }],
        };
        GroupReport {
            name,
            cases,
            time: start.elapsed(),
        }
    }

    async fn group_cases(&self, file: &Path) -> anyhow::Result<Vec<Report>> {
        let stage = Stage::set(file)?;
        let cases: Vec<&Case> = stage
            .group
            .cases
            .iter()
            .filter(|case| self.wants(&stage.group.name, &case.name))
            .collect();
        let mut reports = self.once(&stage, &cases).await?;
        // What differs is played again, alone: a machine that hangs for a moment is not a difference.
        for _ in 0..REPEATS {
            let again: Vec<&Case> = cases
                .iter()
                .filter(|case| {
                    reports
                        .iter()
                        .any(|report| report.case == case.name && !report.verdict.is_good())
                })
                .copied()
                .collect();
            if again.is_empty() {
                break;
            }
            for repeated in self.once(&stage, &again).await? {
                let same = |report: &&mut Report| report.case == repeated.case;
                if let Some(earlier) = reports.iter_mut().find(same) {
                    let is_repeated = repeated.verdict.is_good();
                    *earlier = Report {
                        is_repeated,
                        ..repeated
                    };
                }
            }
        }
        Ok(reports)
    }

    async fn once(&self, stage: &Stage, cases: &[&Case]) -> anyhow::Result<Vec<Report>> {
        let name = &stage.group.name;
        let envoy = match &self.oracle {
            Oracle::Binary(path) => stage.play(cases, path).await.context("Envoy")?,
            Oracle::Recorded(_) => recorded(name)?,
        };
        let mut ours = stage
            .play(cases, &self.ours)
            .await
            .context("bireme-proxy")?;
        let wrong = ours.shift_remove("the process");
        let mut reports: Vec<Report> = cases
            .iter()
            .map(|case| {
                let envoy = envoy.get(&case.name).cloned().unwrap_or(Value::Null);
                let ours = ours.get(&case.name).cloned().unwrap_or(Value::Null);
                Report {
                    group: name.clone(),
                    case: case.name.clone(),
                    verdict: compare(&envoy, &ours, &explanations(&stage.group, case)),
                    is_repeated: false,
                    error: envoy
                        .is_null()
                        .then(|| "Envoy's answer is not recorded".to_owned()),
                    envoy,
                    ours,
                }
            })
            .collect();
        if let Some(wrong) = wrong {
            reports.push(Report {
                group: name.clone(),
                case: "the process".to_owned(),
                verdict: Verdict::default(),
                is_repeated: false,
                envoy: Value::Null,
                ours: wrong.clone(),
                error: Some(wrong.as_str().unwrap_or_default().to_owned()),
            });
        }
        Ok(reports)
    }
}

impl Report {
    /// The outcomes agree, as far as they are meant to.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.error.is_none() && self.verdict.is_good()
    }

    /// In one word.
    #[must_use]
    pub fn result(&self) -> &'static str {
        match self {
            report if report.error.is_some() => "error",
            report if !report.verdict.is_good() => "DIFFERS",
            report if !report.verdict.explained.is_empty() => "explained",
            _ => "same",
        }
    }
}
