//! The README's tour, command by command, on a mesh as a newcomer gets it.

use e2e::console;
use e2e::mesh::{Mesh, programs, project};

#[tokio::test]
#[ignore = "needs root and iptables"]
async fn every_command_of_the_readme_shows_what_the_readme_says() {
    let readme = std::fs::read_to_string(project().join("README.md")).unwrap();
    let steps = console::steps(&readme);
    assert!(steps.len() > 10, "the README has a tour");
    let mut mesh = Mesh::up_as_a_newcomer().await.unwrap();
    let path = format!(
        "{}:{}",
        programs().unwrap().display(),
        std::env::var_os("PATH").unwrap().to_str().unwrap()
    );
    for step in steps {
        step.run_as_a_person(&project(), &path)
            .await
            .unwrap_or_else(|error| panic!("README.md {error:#}"));
    }
    assert_eq!(mesh.end().await, "");
}
