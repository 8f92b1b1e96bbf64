//! `biremectl verify-install`: whether everything of an installation is there and runs; and before there is one, whether the
//! cluster would take it.

use std::process::ExitCode;

use clap::Args;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};
use proto_component::kubernetes::KubeArgs;
use serde_json::Value;

use crate::manifest::cluster::Cluster;
use crate::manifest::{PlanArgs, objects};
use crate::table::print_text;

/// The oldest Kubernetes that has everything that the charts use.
const OLDEST: u32 = 25;

/// What an installation must be allowed to create: group and resource.
const CREATED: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "roles"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("apps", "deployments"),
    ("", "configmaps"),
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
    ),
];

/// `verify-install`.
#[derive(Debug, Args)]
pub struct VerifyInstallArgs {
    /// What is installed.
    #[command(flatten)]
    pub plan: PlanArgs,
    /// Where.
    #[command(flatten)]
    pub cluster: KubeArgs,
    /// Check what an installation would need instead.
    #[arg(long)]
    pub pre_check: bool,
}

/// Checks, with a line for each thing; the exit code is 1 if one is not as it should be.
pub(crate) async fn run(args: VerifyInstallArgs) -> anyhow::Result<ExitCode> {
    let client = args.cluster.client().await?;
    if args.pre_check {
        let problems = pre_check(&client).await?;
        for problem in &problems {
            print_text(&format!("✘ {problem}\n"))?;
        }
        if problems.is_empty() {
            print_text("✔ the cluster takes an installation\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        return Ok(ExitCode::from(1));
    }
    let (_, objects) = objects(&args.plan).await?;
    let cluster = Cluster::new(client, false);
    let (mut bad, mut deployments) = (0, 0);
    for object in &objects {
        let metadata = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = metadata["namespace"]
            .as_str()
            .map(|namespace| format!(".{namespace}"));
        let name = format!(
            "{}: {}{}",
            text(&object["kind"]),
            text(&metadata["name"]),
            namespace.unwrap_or_default()
        );
        deployments += u32::from(object["kind"] == "Deployment");
        let line = match cluster.state_of(object).await? {
            Some(true) => format!("✔ {name} checked successfully\n"),
            Some(false) => format!("✘ {name} is there, but not available\n"),
            None => format!("✘ {name} is not there\n"),
        };
        bad += u32::from(line.starts_with('✘'));
        print_text(&line)?;
    }
    print_text(&format!(
        "Checked {} objects, {deployments} of them Deployments: {bad} not as they should be\n",
        objects.len()
    ))?;
    Ok(ExitCode::from(u8::from(bad > 0)))
}

/// Why a cluster would not take an installation.
pub(crate) async fn pre_check(client: &Client) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    let version = client.apiserver_version().await?;
    let minor: String = version
        .minor
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    if minor.parse().is_ok_and(|minor: u32| minor < OLDEST) {
        problems.push(format!(
            "Kubernetes {}: 1.{OLDEST} is the oldest that will do",
            version.git_version
        ));
    }
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    for (group, resource) in CREATED {
        let attributes = ResourceAttributes {
            group: Some((*group).to_owned()),
            resource: Some((*resource).to_owned()),
            verb: Some("create".to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if !answer.status.as_ref().is_some_and(|status| status.allowed) {
            problems.push(
                format!("you may not create {resource} {}", answer.name_any())
                    .trim()
                    .to_owned(),
            );
        }
    }
    Ok(problems)
}
