//! The rows: ways from a client to a server, each with how its mesh is set up, what it is compared with, and the
//! ratios it must reach. A new way is one more entry of [`ROWS`].

use std::collections::HashSet;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::case::Case;

/// A mesh of its own is raised for each set-up that is measured. All of them are up at the same time, so that what
/// is compared is measured in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Setup {
    pub(crate) proxy: Proxy,
    /// Environment of every `ztunnel run`.
    pub(crate) node_env: &'static [(&'static str, &'static str)],
    /// Lines of the mesh file's entry of each enrolled pod.
    pub(crate) workload: &'static [&'static str],
}

/// Whose proxy the nodes of a mesh run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Proxy {
    /// This project's.
    Ours,
    /// The one that `--against` names; node and workload settings do not reach it.
    Stock,
}

/// `ztunnel run` as it is without a word of ours.
const DEFAULT: Setup = Setup {
    proxy: Proxy::Ours,
    node_env: &[],
    workload: &[],
};
/// Pods of one node by way of the proxy, in plain text.
const PROXIED: Setup = Setup {
    proxy: Proxy::Ours,
    node_env: &[("SAME_NODE", "proxy")],
    workload: &[],
};
const SPLICED: Setup = Setup {
    proxy: Proxy::Ours,
    // Whatever the kernel answers to FIONREAD: nobody here asks.
    node_env: &[("SAME_NODE", "proxy"), ("ZTUNNEL_SPLICE", "always")],
    workload: &["splice: true"],
};
const STOCK: Setup = Setup {
    proxy: Proxy::Stock,
    node_env: &[],
    workload: &[],
};

/// One end of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Spot {
    /// The node it is on.
    pub(crate) node: &'static str,
    pub(crate) pod: Kind,
}

/// Which of its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Enrolled,
    /// Not even in the mesh file.
    Outside,
    /// One more like that.
    Twin,
}

/// The nodes of every mesh.
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];

const fn enrolled(node: &'static str) -> Spot {
    Spot {
        node,
        pod: Kind::Enrolled,
    }
}

const fn outside(node: &'static str) -> Spot {
    Spot {
        node,
        pod: Kind::Outside,
    }
}

const fn twin(node: &'static str) -> Spot {
    Spot {
        node,
        pod: Kind::Twin,
    }
}

/// What a ratio must not exceed, or must reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(crate) fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }
}

/// What the median of the ratios of one figure must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Target {
    /// The row that is divided by: one of its own row's `against` and `beside`.
    pub(crate) against: &'static str,
    pub(crate) case: &'static str,
    /// Key of a figure of that case.
    pub(crate) figure: &'static str,
    pub(crate) bound: Bound,
}

/// A target of a row that is compared with row `against`.
const fn target(against: &'static str, case: &'static str, figure: &'static str, bound: Bound) -> Target {
    Target {
        against,
        case,
        figure,
        bound,
    }
}

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) about: &'static str,
    pub(crate) setup: Setup,
    pub(crate) client: Spot,
    pub(crate) server: Spot,
    /// Whether the proxies of both nodes carry all its bytes, so that what they hold is its doing.
    pub(crate) proxied: bool,
    /// The row above it that each of its samples is divided by. Without that one it is not measured.
    pub(crate) against: Option<&'static str>,
    /// A row above it that its samples are divided by as well if it is measured.
    pub(crate) beside: Option<&'static str>,
    pub(crate) targets: &'static [Target],
}

/// All ways. A round measures them in this order, so each stands close behind what it is compared with.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "plain-near",
        about: "two pods of one node, neither enrolled",
        setup: DEFAULT,
        client: outside("n1"),
        server: outside("n1"),
        proxied: false,
        against: None,
        beside: None,
        targets: &[],
    },
    Row {
        name: "same-node",
        about: "two pods of one node, both enrolled",
        setup: DEFAULT,
        client: enrolled("n1"),
        server: enrolled("n1"),
        proxied: false,
        against: Some("plain-near"),
        beside: None,
        targets: &[
            target("plain-near", "rtt-64", "p50_us", Bound::AtMost(1.1)),
            target("plain-near", "bulk-1", "gbit_per_s", Bound::AtLeast(0.9)),
            target("plain-near", "bulk-4", "gbit_per_s", Bound::AtLeast(0.9)),
            target("plain-near", "connect", "connections_per_s", Bound::AtLeast(0.85)),
        ],
    },
    Row {
        name: "same-node-proxied",
        about: "two pods of one node, both enrolled, in plain text through the proxy",
        setup: PROXIED,
        client: enrolled("n1"),
        server: enrolled("n1"),
        proxied: false,
        against: Some("plain-near"),
        beside: None,
        targets: &[],
    },
    Row {
        name: "spliced",
        about: "as same-node-proxied, the kernel carries the bytes after the hand-over",
        setup: SPLICED,
        client: enrolled("n1"),
        server: enrolled("n1"),
        proxied: false,
        against: Some("same-node-proxied"),
        beside: None,
        targets: &[target(
            "same-node-proxied",
            "rtt-64",
            "p50_us",
            Bound::AtMost(0.65),
        )],
    },
    Row {
        name: "control",
        about: "two more pods like those of plain-near: what is not 1 here is chance",
        setup: DEFAULT,
        client: twin("n1"),
        server: twin("n1"),
        proxied: false,
        against: Some("plain-near"),
        beside: None,
        targets: &[],
    },
    Row {
        name: "plain-far",
        about: "pods of two nodes, neither enrolled",
        setup: DEFAULT,
        client: outside("n1"),
        server: outside("n2"),
        proxied: false,
        against: None,
        beside: None,
        targets: &[],
    },
    Row {
        name: "non-mesh-egress",
        about: "from an enrolled pod to a pod of the other node that the mesh does not know",
        setup: DEFAULT,
        client: enrolled("n1"),
        server: outside("n2"),
        proxied: false,
        against: Some("plain-far"),
        beside: None,
        targets: &[
            target("plain-far", "bulk-1", "gbit_per_s", Bound::AtLeast(0.95)),
            target("plain-far", "bulk-4", "gbit_per_s", Bound::AtLeast(0.95)),
        ],
    },
    Row {
        name: "stock",
        about: "pods of two nodes, both in a mesh of the ztunnel that --against names",
        setup: STOCK,
        client: enrolled("n1"),
        server: enrolled("n2"),
        proxied: true,
        against: Some("plain-far"),
        beside: None,
        targets: &[],
    },
    Row {
        name: "hbone",
        about: "pods of two nodes, both enrolled: mutual TLS between the nodes",
        setup: DEFAULT,
        client: enrolled("n1"),
        server: enrolled("n2"),
        proxied: true,
        against: Some("plain-far"),
        beside: Some("stock"),
        targets: &[
            target("stock", "rtt-64", "p50_us", Bound::AtMost(0.5)),
            target("stock", "rtt-16k", "p99_us", Bound::AtMost(0.6)),
            target("stock", "bulk-1", "gbit_per_s", Bound::AtLeast(1.6)),
            target("stock", "bulk-1", "cpu_s_per_gb", Bound::AtMost(0.6)),
            target("stock", "bulk-16", "gbit_per_s", Bound::AtLeast(1.6)),
            target("stock", "mixed", "p99_us", Bound::AtMost(0.15)),
            target("stock", "connect", "connections_per_s", Bound::AtLeast(2.0)),
            target("stock", "rss-idle", "rss_kib", Bound::AtMost(0.5)),
            target("stock", "idle-1000", "rss_growth_kib", Bound::AtMost(0.5)),
            target("stock", "rss-after-load", "rss_kib", Bound::AtMost(0.5)),
        ],
    },
];

impl Row {
    /// The rows it is compared with, measured or not.
    pub(crate) fn baselines(&self) -> impl Iterator<Item = &'static str> {
        self.against.into_iter().chain(self.beside)
    }

    /// Whether `case` says anything about it.
    pub(crate) fn takes(&self, case: &Case) -> bool {
        self.proxied || !case.is_of_proxies()
    }

    /// Its targets in `case` that are ratios to row `against`.
    pub(crate) fn targets(&self, against: &str, case: &str) -> impl Iterator<Item = &'static Target> {
        self.targets
            .iter()
            .filter(move |target| target.against == against && target.case == case)
    }
}

/// The rows whose names contain one of the texts between commas in `text`, and what they are compared with, in order. Those of a stock ztunnel are
/// there only `with_stock`.
pub(crate) fn chosen(text: &str, with_stock: bool) -> Result<Vec<Row>> {
    let there = || {
        ROWS.iter()
            .filter(|row| with_stock || row.setup.proxy != Proxy::Stock)
    };
    let mut wanted: HashSet<&str> = HashSet::new();
    // From below, as a baseline stands above the rows that need it, and may have one itself.
    for row in there().rev() {
        if text.split(',').any(|part| row.name.contains(part)) || wanted.contains(row.name) {
            wanted.insert(row.name);
            wanted.extend(row.baselines());
        }
    }
    let names: Vec<&str> = there().map(|row| row.name).collect();
    ensure!(
        !wanted.is_empty(),
        "no row has `{text}` in its name; there are {}",
        names.join(", ")
    );
    Ok(there().copied().filter(|row| wanted.contains(row.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CASES;

    #[test]
    fn a_row_stands_below_what_it_is_compared_with() {
        for (index, row) in ROWS.iter().enumerate() {
            let above: Vec<&str> = ROWS[..index].iter().map(|row| row.name).collect();
            assert!(!above.contains(&row.name), "{} is there twice", row.name);
            assert!(row.baselines().all(|name| above.contains(&name)), "{}", row.name);
        }
    }

    #[test]
    fn a_target_is_for_a_figure_that_both_rows_have() {
        for row in ROWS {
            for target in row.targets {
                let about = format!("{}: {target:?}", row.name);
                assert!(row.baselines().any(|name| name == target.against), "{about}");
                let case = CASES.iter().find(|case| case.name == target.case);
                assert!(case.is_some(), "{about}");
                let case = case.unwrap();
                assert!(case.figure(target.figure).is_some(), "{about}");
                let against = ROWS.iter().find(|row| row.name == target.against);
                assert!(row.takes(case) && against.unwrap().takes(case), "{about}");
            }
        }
    }

    #[test]
    fn a_row_brings_its_baselines_and_theirs() {
        let names = |text, with_stock| -> Vec<&str> {
            let rows = chosen(text, with_stock).unwrap();
            rows.iter().map(|row| row.name).collect()
        };
        assert_eq!(names("hbone", false), ["plain-far", "hbone"]);
        assert_eq!(names("hbone", true), ["plain-far", "stock", "hbone"]);
        assert_eq!(names("stock", true), ["plain-far", "stock"]);
        assert_eq!(
            names("spliced", true),
            ["plain-near", "same-node-proxied", "spliced"]
        );
        assert_eq!(names("control,plain-far", false).len(), 3);
        assert_eq!(names("", true).len(), ROWS.len());
        assert_eq!(names("", false).len(), ROWS.len() - 1);
        for text in ["nothing", "stock"] {
            let error = chosen(text, false).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("same-node"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_document_names_every_row_case_figure_and_target() {
        let document = include_str!("../../../../docs/performance.md");
        for row in ROWS {
            let name = format!("| `{}` |", row.name);
            assert!(document.contains(&format!("\n{name}")), "{}", row.name);
            for target in row.targets {
                let bound = match target.bound {
                    Bound::AtMost(most) => format!("at most {most}"),
                    Bound::AtLeast(least) => format!("at least {least}"),
                };
                let found = document.lines().any(|line| {
                    let words = [target.case, target.figure, target.against];
                    line.starts_with(&name)
                        && line.ends_with(&format!("| {bound} |"))
                        && words.iter().all(|word| line.contains(&format!("`{word}`")))
                });
                assert!(found, "{}: {target:?}", row.name);
            }
        }
        for case in CASES {
            assert!(document.contains(&format!("`{}`", case.name)), "{}", case.name);
            for figure in case.load.figures() {
                assert!(document.contains(&format!("`{}`", figure.key)), "{}", figure.key);
            }
        }
    }

    #[test]
    fn a_bound_includes_its_own_value() {
        assert!(Bound::AtMost(1.1).holds(1.1) && !Bound::AtMost(1.1).holds(1.11));
        assert!(Bound::AtLeast(0.9).holds(0.9) && !Bound::AtLeast(0.9).holds(0.89));
    }
}
