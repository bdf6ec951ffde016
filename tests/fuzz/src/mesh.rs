//! The mesh file, and the form of an identity.

use ztunnel::identity::SpiffeId;
use ztunnel::meshfile::{self, MeshFile, Options, Problem};

/// Any text, as a mesh file.
pub fn mesh_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match meshfile::parse(&text, &Options::default()) {
        Ok(file) => is_whole(&file, &text),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused, and nobody knows why");
            problems.iter().for_each(|problem| is_placed(problem, &text));
        }
    }
}

fn is_whole(file: &MeshFile, text: &str) {
    file.warnings.iter().for_each(|problem| is_placed(problem, text));
    let snapshot = file.snapshot();
    for workload in &file.workloads {
        let id = workload.identity();
        assert_eq!(
            SpiffeId::parse(&id.to_string()),
            Ok(id),
            "nobody could ever hold a certificate of this workload"
        );
        let found = snapshot.workload_named(workload.namespace.as_str(), &workload.name);
        assert!(
            found.is_some(),
            "{}/{} is lost",
            workload.namespace,
            workload.name
        );
        for ports in workload.services.values() {
            assert!(ports.iter().all(|(service, _)| service != 0));
        }
    }
}

/// A person can go there, and what is said stays on its line of a terminal or a log.
fn is_placed(problem: &Problem, text: &str) {
    let breaks = text.chars().filter(|c| matches!(c, '\n' | '\r')).count();
    assert!((1..=breaks + 2).contains(&problem.line), "{problem:?}");
    assert!(
        (1..=text.chars().count() + 1).contains(&problem.column),
        "{problem:?}"
    );
    assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
}

/// Any text, as an identity.
pub fn spiffe(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(id) = SpiffeId::parse(&text) else {
        return;
    };
    assert_eq!(id.to_string(), text, "an identity has one form only");
    let parts = [
        id.trust_domain().as_str(),
        id.namespace().as_str(),
        id.service_account().as_str(),
    ];
    for part in parts {
        assert!(!part.is_empty() && !part.contains('/'), "{id}");
    }
    let same = SpiffeId::new(
        id.trust_domain().clone(),
        id.namespace().clone(),
        id.service_account().clone(),
    );
    assert_eq!(same, id);
}
