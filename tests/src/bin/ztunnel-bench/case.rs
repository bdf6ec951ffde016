//! The cases: what a client does to a server, and which figures come of it. Knows nothing of where the two are.

use std::collections::BTreeMap;

/// Figures of one measurement, by [`Figure::key`]. Finite; what rows are compared by is above zero.
pub(crate) type Figures = BTreeMap<String, f64>;

/// What the client of one measurement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// One connection; a message of `size` bytes there and back, the next when the answer is complete.
    RoundTrip {
        /// Bytes, 8 to [`LARGEST_MESSAGE`].
        size: usize,
    },
    /// Connections on which the client sends as fast as it can; the bytes count that the server has read.
    Bulk {
        /// How many at the same time, each with a thread at both ends.
        connections: usize,
    },
    /// Connections one after the other: one byte each way, the server closes first, then the client.
    Connect {
        /// How many threads do so at the same time.
        threads: usize,
    },
}

/// Largest message of [`Load::RoundTrip`], in bytes.
pub(crate) const LARGEST_MESSAGE: usize = 1 << 20;
/// Threads of [`Load::Connect`], at the client and at the server.
pub(crate) const CONNECT_THREADS: usize = 4;

/// Key of the processor time that the proxies of both nodes have used per 10^9 bytes of payload, in seconds. No
/// client can tell: who runs one adds it.
pub(crate) const CPU_S_PER_GB: &str = "cpu_s_per_gb";

/// One number that a measurement gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figure {
    /// Its name in the JSON.
    pub(crate) key: &'static str,
    /// Its name in the table, with the unit.
    pub(crate) title: &'static str,
    /// Digits behind the point in the table.
    pub(crate) digits: usize,
}

const P50: Figure = figure("p50_us", "p50 us", 1);
const P99: Figure = figure("p99_us", "p99 us", 1);
const MEAN: Figure = figure("mean_us", "mean us", 1);
const GBIT: Figure = figure("gbit_per_s", "Gbit/s", 2);
const CPU_PER_GB: Figure = figure(CPU_S_PER_GB, "CPU s/GB", 2);
const RATE: Figure = figure("connections_per_s", "conn/s", 0);

const fn figure(key: &'static str, title: &'static str, digits: usize) -> Figure {
    Figure { key, title, digits }
}

impl Load {
    /// The figures it gives. The first one is what rows are compared by where a target names no other.
    pub(crate) fn figures(self) -> &'static [Figure] {
        match self {
            Self::RoundTrip { .. } => &[P50, P99, MEAN],
            Self::Bulk { .. } => &[GBIT, CPU_PER_GB],
            Self::Connect { .. } => &[RATE],
        }
    }
}

/// One case.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// What `--case` is compared with.
    pub(crate) name: &'static str,
    /// What is done, for people.
    pub(crate) title: &'static str,
    pub(crate) load: Load,
}

impl Case {
    /// Its figure with this key, if that is one of the table's.
    pub(crate) fn figure(&self, key: &str) -> Option<Figure> {
        self.load
            .figures()
            .iter()
            .copied()
            .find(|figure| figure.key == key)
    }

    /// What rows are compared by.
    pub(crate) fn headline(&self) -> Figure {
        self.load.figures()[0]
    }
}

/// All cases, in the order in which a round measures them.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "rtt-64",
        title: "round trip of 64 B, one connection (lower is better)",
        load: Load::RoundTrip { size: 64 },
    },
    Case {
        name: "rtt-1k",
        title: "round trip of 1 KiB, one connection (lower is better)",
        load: Load::RoundTrip { size: 1024 },
    },
    Case {
        name: "rtt-16k",
        title: "round trip of 16 KiB, one connection (lower is better)",
        load: Load::RoundTrip { size: 16 * 1024 },
    },
    Case {
        name: "bulk-1",
        title: "bulk, one connection, client to server (higher is better)",
        load: Load::Bulk { connections: 1 },
    },
    Case {
        name: "bulk-4",
        title: "bulk, four connections at once, client to server (higher is better)",
        load: Load::Bulk { connections: 4 },
    },
    Case {
        name: "bulk-16",
        title: "bulk, sixteen connections at once, client to server (higher is better)",
        load: Load::Bulk { connections: 16 },
    },
    Case {
        name: "connect",
        title: "connect, one byte each way, close: four threads (higher is better)",
        load: Load::Connect {
            threads: CONNECT_THREADS,
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_a_message_that_fits() {
        for (index, case) in CASES.iter().enumerate() {
            assert!(
                CASES[..index].iter().all(|other| other.name != case.name),
                "{}",
                case.name
            );
            if let Load::RoundTrip { size } = case.load {
                assert!((8..=LARGEST_MESSAGE).contains(&size), "{}", case.name);
            }
        }
    }
}
