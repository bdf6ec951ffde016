//! Whether the ztunnel at hand can do what a set-up asks for. A row that it cannot do is left out and named with
//! the reason: an unknown environment variable would be ignored, and the row measure something else.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;
use ztunnel_tests::{SOON, run, ztunnel_path};

use crate::row::{Row, Setup};

/// A row that is not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) row: &'static str,
    pub(crate) why: String,
}

/// Sorts `rows` into those that can be measured and those that cannot. A row goes with its baseline.
pub(crate) fn sort_out(
    rows: Vec<Row>,
    missing: impl Fn(&Setup) -> Result<Option<String>>,
) -> Result<(Vec<Row>, Vec<LeftOut>)> {
    let (mut kept, mut left_out) = (Vec::<Row>::new(), Vec::new());
    for row in rows {
        let baseline = row
            .against
            .filter(|name| kept.iter().all(|row| row.name != *name));
        let why = match missing(&row.setup)? {
            None => baseline.map(|name| format!("{name}, which it is compared with, is left out")),
            why => why,
        };
        match why {
            None => kept.push(row),
            Some(why) => left_out.push(LeftOut { row: row.name, why }),
        }
    }
    Ok((kept, left_out))
}

/// What `setup` needs and this ztunnel does not have.
pub(crate) fn missing(setup: &Setup) -> Result<Option<String>> {
    let ztunnel = ztunnel_path();
    if !setup.node_env.is_empty() {
        let help = run(
            None,
            &[ztunnel.as_os_str(), "run".as_ref(), "--help".as_ref()],
            SOON,
        )?
        .ok()?;
        if let Some(name) = first_unknown(setup, &help) {
            return Ok(Some(format!("`ztunnel run` knows no variable {name}")));
        }
    }
    if !setup.workload.is_empty() {
        let mut file = tempfile::NamedTempFile::new().context("a file for `ztunnel check`")?;
        file.write_all(sample_mesh(setup).as_bytes())?;
        let check = run(
            None,
            &[ztunnel.as_os_str(), "check".as_ref(), file.path().as_os_str()],
            SOON,
        )?;
        if !check.success() {
            let said = check.stderr + &check.stdout;
            let first = said.lines().next().unwrap_or_default();
            // Where our file was means nothing to anybody.
            let said = first.replace(&*file.path().to_string_lossy(), "mesh file");
            let lines = setup.workload.join(", ");
            return Ok(Some(format!(
                "the mesh file takes no workload with `{lines}` ({said})"
            )));
        }
    }
    Ok(None)
}

/// The first variable of `setup` that the help text does not name.
fn first_unknown(setup: &Setup, help: &str) -> Option<&'static str> {
    setup
        .node_env
        .iter()
        .map(|&(name, _)| name)
        .find(|name| !help.contains(&format!("[env: {name}=")))
}

fn sample_mesh(setup: &Setup) -> String {
    let more: String = setup.workload.iter().map(|line| format!("  {line}\n")).collect();
    format!("workloads:\n- name: a\n  namespace: default\n  workloadIps: [10.244.1.2]\n{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Proxy, ROWS};

    fn names<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Vec<&'static str> {
        rows.into_iter().map(|row| row.name).collect()
    }

    #[test]
    fn with_everything_there_every_row_is_measured() {
        let (kept, left_out) = sort_out(ROWS.to_vec(), |_| Ok(None)).unwrap();
        assert_eq!((kept, left_out), (ROWS.to_vec(), Vec::new()));
    }

    #[test]
    fn a_row_that_is_left_out_takes_with_it_what_is_compared_with_it() {
        let old = |setup: &Setup| {
            let proxied = !setup.node_env.is_empty() && setup.workload.is_empty();
            Ok(proxied.then(|| "too old".to_owned()))
        };
        let (kept, left_out) = sort_out(ROWS.to_vec(), old).unwrap();
        let out: Vec<&str> = left_out.iter().map(|out| out.row).collect();
        assert_eq!(out, ["same-node-proxied", "spliced"]);
        assert_eq!(left_out[0].why, "too old");
        assert!(left_out[1].why.starts_with("same-node-proxied"), "{left_out:?}");
        assert_eq!(names(&kept).len() + out.len(), ROWS.len());
    }

    #[test]
    fn a_row_is_measured_without_what_it_would_be_compared_with_as_well() {
        let no_stock = |setup: &Setup| Ok((setup.proxy == Proxy::Stock).then(|| "none".to_owned()));
        let (kept, left_out) = sort_out(ROWS.to_vec(), no_stock).unwrap();
        assert_eq!(left_out.len(), 1);
        assert!(names(&kept).contains(&"hbone"), "{left_out:?}");
    }

    #[test]
    fn a_variable_is_known_when_the_help_binds_it() {
        let setup = Setup {
            proxy: Proxy::Ours,
            node_env: &[("SAME_NODE", "proxy")],
            workload: &[],
        };
        assert_eq!(first_unknown(&setup, "... [env: SAME_NODE=]"), None);
        assert_eq!(first_unknown(&setup, "... [env: SAME_NODE=direct]"), None);
        let other = "SAME_NODE is mentioned; [env: NOT_SAME_NODE=]";
        assert_eq!(first_unknown(&setup, other), Some("SAME_NODE"));
    }

    #[test]
    fn the_mesh_that_is_checked_holds_the_lines_of_the_set_up() {
        let setup = Setup {
            proxy: Proxy::Ours,
            node_env: &[],
            workload: &["splice: true"],
        };
        assert!(sample_mesh(&setup).ends_with("\n  splice: true\n"));
    }
}
