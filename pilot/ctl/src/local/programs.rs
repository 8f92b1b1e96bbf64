//! Bireme's programs: which one an image stands for, and what a user has put in its place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Container;
use proto_component::process::Usage;

use super::pod::sandbox::{Bind, Sandbox};

/// Bireme's programs, and what stands in for them.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// This program.
    pub own: PathBuf,
    /// Programs by the last segment of an image's name.
    images: BTreeMap<String, PathBuf>,
    /// A proxy to run in the place of the one inside the agent.
    proxy: Option<PathBuf>,
}

/// Image (last segment), program, and the component's name for `--replace`.
const IMAGES: &[(&str, &str, &str)] = &[
    ("pilot", "pilot-discovery", "pilot"),
    ("galley", "galley", "galley"),
    ("citadel", "istio_ca", "citadel"),
    ("mixer", "mixs", "mixer"),
    ("sidecar_injector", "sidecar-injector", "injector"),
    ("proxyv2", "pilot-agent", "agent"),
    ("proxy_init", "istio-iptables", "capture"),
    ("bookinfo", "bookinfo", "bookinfo"),
];

impl Programs {
    /// Programs lie beside this one; `replacements` are `COMPONENT=PATH`.
    pub(crate) fn find(replacements: &[String]) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("find this program's file")?;
        let directory = own.parent().unwrap_or(Path::new("/")).to_owned();
        let mut programs = Self {
            own,
            images: BTreeMap::new(),
            proxy: None,
        };
        for (image, program, _) in IMAGES {
            programs
                .images
                .insert((*image).to_owned(), directory.join(program));
        }
        for replacement in replacements {
            programs.replace(replacement)?;
        }
        Ok(programs)
    }

    fn replace(&mut self, replacement: &str) -> anyhow::Result<()> {
        let known: Vec<&str> = IMAGES
            .iter()
            .map(|(_, _, component)| *component)
            .chain(["proxy"])
            .collect();
        let usage = |problem: String| anyhow::Error::from(Usage(problem));
        let (component, path) = replacement
            .split_once('=')
            .ok_or_else(|| usage(format!("--replace {replacement:?}: write COMPONENT=PATH")))?;
        let path = fs::canonicalize(path)
            .map_err(|error| usage(format!("--replace {component}: {path}: {error}")))?;
        if component == "proxy" {
            self.proxy = Some(path);
            return Ok(());
        }
        let Some((image, _, _)) = IMAGES.iter().find(|(_, _, name)| *name == component) else {
            return Err(usage(format!(
                "--replace: there is no component {component:?}; there are {}",
                known.join(", ")
            )));
        };
        self.images.insert((*image).to_owned(), path);
        Ok(())
    }

    /// The first program that one of these manifests needs and that is not there.
    pub(crate) fn missing<'a>(&self, manifests: impl Iterator<Item = &'a str>) -> Option<&Path> {
        let mut images: Vec<String> = Vec::new();
        for document in manifests.flat_map(proto::yaml::parse_documents).flatten() {
            let spec = &document.value["spec"]["template"]["spec"];
            for container in spec["containers"].as_array().into_iter().flatten() {
                if container["command"].is_null() {
                    images.extend(container["image"].as_str().map(str::to_owned));
                }
            }
            if document.value["kind"] == "MutatingWebhookConfiguration" {
                images.extend(["proxyv2".to_owned(), "proxy_init".to_owned()]);
            }
        }
        let programs = images
            .iter()
            .filter_map(|image| self.images.get(image_name(image)));
        let mut missing = programs.filter(|path| !path.exists());
        missing.next().map(PathBuf::as_path)
    }

    /// The command of a container that names none.
    pub(crate) fn command_of_image(&self, image: &str) -> anyhow::Result<Vec<String>> {
        let name = image_name(image);
        let file = self.images.get(name).with_context(|| {
            let known: Vec<&String> = self.images.keys().collect();
            format!("image {image:?} is none of Bireme's ({known:?}); give the container a `command` of this machine")
        })?;
        anyhow::ensure!(
            file.exists(),
            "{} does not exist: build it (`cargo build --release`)",
            file.display()
        );
        Ok(vec![program_name(name).to_owned()])
    }

    /// Programs as they appear in `/usr/local/bin`.
    pub(crate) fn binds(&self) -> Vec<Bind> {
        let bin = Path::new("/usr/local/bin");
        let existing = self.images.iter().filter(|(_, path)| path.exists());
        let mut binds: Vec<Bind> = existing
            .map(|(image, path)| Bind {
                source: path.clone(),
                target: bin.join(program_name(image)),
                read_only: true,
            })
            .collect();
        if let Some(proxy) = &self.proxy {
            binds.push(Bind {
                source: proxy.clone(),
                target: bin.join("envoy"),
                read_only: true,
            });
        }
        binds
    }

    /// Arguments that the platform adds: the replaced proxy's path.
    pub(crate) fn extra_args(&self, container: &Container) -> Vec<String> {
        let is_agent = image_name(container.image.as_deref().unwrap_or_default()) == "proxyv2"
            && container
                .args
                .as_ref()
                .is_some_and(|args| args.first().is_some_and(|first| first == "proxy"));
        if self.proxy.is_some() && is_agent {
            vec!["--binaryPath=/usr/local/bin/envoy".into()]
        } else {
            Vec::new()
        }
    }

    /// Rewrites a sandbox for running among the host's files: mount paths become the paths of what would be mounted.
    pub(crate) fn among_host_files(&self, sandbox: &mut Sandbox) {
        let binds = std::mem::take(&mut sandbox.binds);
        let mut mounts: Vec<(String, String)> = binds
            .iter()
            .map(|bind| (shown(&bind.target), shown(&bind.source)))
            .collect();
        // The longest mount path first, so that a path is replaced by the mount that holds it.
        mounts.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        let rewrite = |text: &str| replace_paths(text, &mounts);
        if let Some(name) = sandbox.command.first_mut()
            && let Some((image, _, _)) = IMAGES.iter().find(|(_, program, _)| program == name)
            && let Some(file) = self.images.get(*image)
        {
            *name = file.to_string_lossy().into_owned();
        }
        sandbox.command = sandbox
            .command
            .iter()
            .map(|argument| rewrite(argument))
            .collect();
        for (name, value) in &mut sandbox.environment {
            if name != "PATH" {
                *value = rewrite(value);
            }
        }
    }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Puts what is mounted in the place of mount paths, wherever they stand in `text` as whole path segments.
fn replace_paths(text: &str, mounts: &[(String, String)]) -> String {
    let is_name = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let follows_name = out.chars().next_back().is_some_and(is_name);
        let mount = mounts.iter().find(|(target, _)| {
            let after = rest.strip_prefix(target.as_str());
            after.is_some_and(|after| !after.starts_with(is_name)) && !follows_name
        });
        let taken = match mount {
            Some((target, source)) => {
                out.push_str(source);
                target.len()
            }
            None => {
                out.push(next);
                next.len_utf8()
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    out
}

fn image_name(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split([':', '@']).next().unwrap_or(last)
}

fn program_name(image: &str) -> &str {
    IMAGES
        .iter()
        .find(|(name, _, _)| *name == image)
        .map_or(image, |(_, program, _)| program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_stands_for_the_program_of_its_last_segment() {
        assert_eq!(image_name("bireme/proxyv2:latest"), "proxyv2");
        assert_eq!(image_name("docker.io/istio/pilot@sha256:00"), "pilot");
        assert_eq!(program_name("pilot"), "pilot-discovery");
    }

    #[test]
    fn mount_paths_are_replaced_as_whole_segments() {
        let mounts = [
            ("/var/lib/citadel-root".to_owned(), "/s/root".to_owned()),
            ("/var/lib/citadel".to_owned(), "/s/data".to_owned()),
        ];
        let rewrite = |text: &str| replace_paths(text, &mounts);
        assert_eq!(
            rewrite("--out=/var/lib/citadel-root/x.pem"),
            "--out=/s/root/x.pem"
        );
        assert_eq!(rewrite("/var/lib/citadel"), "/s/data");
        assert_eq!(rewrite("/var/lib/citadel2/x"), "/var/lib/citadel2/x");
        assert_eq!(rewrite("/x/var/lib/citadel"), "/x/var/lib/citadel");
        assert_eq!(rewrite("[\"/var/lib/citadel\"] ä"), "[\"/s/data\"] ä");
    }

    #[test]
    fn a_component_is_replaced_by_name() {
        let programs = Programs::find(&["proxy=/bin/sh".into(), "pilot=/bin/sh".into()]).unwrap();
        assert!(programs.proxy.is_some());
        assert!(programs.images["pilot"].exists());
        assert!(
            Programs::find(&["rudder=/bin/sh".into()])
                .unwrap_err()
                .to_string()
                .contains("there is no component")
        );
        assert!(Programs::find(&["pilot".into()]).is_err());
    }
}
