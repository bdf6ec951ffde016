//! The cases: what a client does to a server, and which figures come of it. Knows nothing of where the two are.

use std::collections::BTreeMap;

/// Figures of one measurement, by [`Figure::key`]. Finite; what rows are compared by is above zero.
pub(crate) type Figures = BTreeMap<String, f64>;

/// What is done to take one measurement.
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
    /// Round trips as in [`Self::RoundTrip`], beside one connection of [`Self::Bulk`] that is never done before them.
    Mixed {
        /// Bytes, 8 to [`LARGEST_MESSAGE`].
        size: usize,
    },
    /// One connection with a message a write, of 1 to [`LARGEST_SMALL`] bytes each; the client waits for no answer, the
    /// server says how many it has read whenever it has read some.
    SmallFrames,
    /// Connections one after the other: one byte each way, the server closes first, then the client.
    Connect {
        /// How many threads do so at the same time.
        threads: usize,
    },
    /// Connections that are all open at the same time: one byte each way, and then nothing.
    Hold {
        /// How many.
        connections: usize,
    },
    /// Nothing at all: the processes are looked at.
    Nothing(Phase),
}

/// When in a run a case is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Of processes that have just been started, once a round: what they keep of earlier work would hide what is
    /// looked for.
    Fresh,
    /// In turn with the other rows, once a round.
    Rounds,
    /// Once, when all rounds are over.
    After,
}

/// Largest message of [`Load::RoundTrip`], in bytes.
pub(crate) const LARGEST_MESSAGE: usize = 1 << 20;
/// Largest message of [`Load::SmallFrames`], in bytes.
pub(crate) const LARGEST_SMALL: u8 = 200;
/// Most connections of [`Load::Hold`].
pub(crate) const MOST_HELD: usize = 1000;
/// What is open already when [`Load::Hold`] begins: with it the code has been used, the tunnels are up, and what is
/// looked at is what more connections take.
pub(crate) const HELD_BEFORE: Case = case(
    "held-before",
    "a few connections that are silent",
    Load::Hold { connections: 100 },
);
/// Threads of [`Load::Connect`], at the client and at the server.
pub(crate) const CONNECT_THREADS: usize = 4;

/// Key of the processor time that the proxies of both nodes have used per 10^9 bytes of payload, in seconds. No
/// client can tell: who runs one adds it.
pub(crate) const CPU_S_PER_GB: &str = "cpu_s_per_gb";

/// Keys of what a client cannot tell of the proxies either: mean of the processes of both nodes, in KiB (per 1,000
/// connections where it is growth), and per cent of one core for both together.
pub(crate) const RSS_KIB: &str = "rss_kib";
pub(crate) const ANON_KIB: &str = "rss_anon_kib";
pub(crate) const RSS_GROWTH_KIB: &str = "rss_growth_kib";
pub(crate) const ANON_GROWTH_KIB: &str = "rss_anon_growth_kib";
pub(crate) const IDLE_CPU_PERCENT: &str = "idle_cpu_percent";

/// One number that a measurement gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figure {
    /// Its name in the JSON.
    pub(crate) key: &'static str,
    /// Its name in the table, with the unit.
    pub(crate) title: &'static str,
    /// Digits behind the point in the table.
    pub(crate) digits: usize,
    pub(crate) better: Better,
}

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
}

const P50: Figure = lower("p50_us", "p50 us", 1);
const P99: Figure = lower("p99_us", "p99 us", 1);
const MEAN: Figure = lower("mean_us", "mean us", 1);
const GBIT: Figure = higher("gbit_per_s", "Gbit/s", 2);
const CPU_PER_GB: Figure = lower(CPU_S_PER_GB, "CPU s/GB", 2);
const MESSAGES: Figure = higher("messages_per_s", "messages/s", 0);
const RATE: Figure = higher("connections_per_s", "conn/s", 0);
const RSS: Figure = lower(RSS_KIB, "RSS KiB", 0);
const ANON: Figure = lower(ANON_KIB, "anon KiB", 0);
const RSS_GROWTH: Figure = lower(RSS_GROWTH_KIB, "RSS +KiB", 0);
const ANON_GROWTH: Figure = lower(ANON_GROWTH_KIB, "anon +KiB", 0);
const IDLE_CPU: Figure = lower(IDLE_CPU_PERCENT, "CPU %", 2);

const fn lower(key: &'static str, title: &'static str, digits: usize) -> Figure {
    Figure {
        key,
        title,
        digits,
        better: Better::Lower,
    }
}

const fn higher(key: &'static str, title: &'static str, digits: usize) -> Figure {
    Figure {
        key,
        title,
        digits,
        better: Better::Higher,
    }
}

impl Figure {
    /// A value of it for people.
    pub(crate) fn show(self, value: f64) -> String {
        // Of a large one nobody reads the fraction, and columns are narrow.
        let digits = if value < 10_000.0 { self.digits } else { 0 };
        format!("{value:.digits$}")
    }
}

impl Load {
    /// The figures it gives. The first one is what rows are compared by where a target names no other.
    pub(crate) fn figures(self) -> &'static [Figure] {
        match self {
            Self::RoundTrip { .. } => &[P50, P99, MEAN],
            Self::Bulk { .. } => &[GBIT, CPU_PER_GB],
            Self::Mixed { .. } => &[P99, P50, GBIT],
            Self::SmallFrames => &[MESSAGES],
            Self::Connect { .. } => &[RATE],
            Self::Hold { .. } => &[RSS_GROWTH, ANON_GROWTH, IDLE_CPU],
            Self::Nothing(_) => &[RSS, ANON],
        }
    }

    /// When it is measured.
    pub(crate) fn phase(self) -> Phase {
        match self {
            Self::Nothing(phase) => phase,
            Self::Hold { .. } => Phase::Fresh,
            _ => Phase::Rounds,
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

    /// Whether its figures are the proxies' own: a row whose bytes they do not carry has none.
    pub(crate) fn is_of_proxies(&self) -> bool {
        self.load.phase() != Phase::Rounds
    }
}

const fn case(name: &'static str, title: &'static str, load: Load) -> Case {
    Case { name, title, load }
}

/// All cases, in the order in which a round measures them.
pub(crate) const CASES: &[Case] = &[
    case(
        "rtt-64",
        "round trip of 64 B, one connection (lower is better)",
        Load::RoundTrip { size: 64 },
    ),
    case(
        "rtt-1k",
        "round trip of 1 KiB, one connection (lower is better)",
        Load::RoundTrip { size: 1024 },
    ),
    case(
        "rtt-16k",
        "round trip of 16 KiB, one connection (lower is better)",
        Load::RoundTrip { size: 16 * 1024 },
    ),
    case(
        "bulk-1",
        "bulk, one connection, client to server (higher is better)",
        Load::Bulk { connections: 1 },
    ),
    case(
        "bulk-4",
        "bulk, four connections at once, client to server (higher is better)",
        Load::Bulk { connections: 4 },
    ),
    case(
        "bulk-16",
        "bulk, sixteen connections at once, client to server (higher is better)",
        Load::Bulk { connections: 16 },
    ),
    case(
        "mixed",
        "round trip of 64 B beside one bulk connection (lower is better)",
        Load::Mixed { size: 64 },
    ),
    case(
        "small-frames",
        "messages of 1 to 200 B, one write each, not waiting for answers (higher is better)",
        Load::SmallFrames,
    ),
    case(
        "connect",
        "connect, one byte each way, close: four threads (higher is better)",
        Load::Connect {
            threads: CONNECT_THREADS,
        },
    ),
    case(
        "rss-idle",
        "memory of a proxy that was just started (lower is better)",
        Load::Nothing(Phase::Fresh),
    ),
    case(
        "idle-1000",
        "growth of a proxy's memory by 1,000 more open connections that are silent (lower is better)",
        Load::Hold {
            connections: MOST_HELD,
        },
    ),
    case(
        "rss-after-load",
        "memory of a proxy after all rounds (lower is better)",
        Load::Nothing(Phase::After),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_is_shown_without_its_fraction() {
        assert_eq!(P99.show(9_999.94), "9999.9");
        assert_eq!(P99.show(17_418.9), "17419");
        assert_eq!(RATE.show(3_805.2), "3805");
    }

    #[test]
    fn every_case_has_a_name_of_its_own_and_a_message_that_fits() {
        for (index, case) in CASES.iter().enumerate() {
            assert!(
                CASES[..index].iter().all(|other| other.name != case.name),
                "{}",
                case.name
            );
            if let Load::RoundTrip { size } | Load::Mixed { size } = case.load {
                assert!((8..=LARGEST_MESSAGE).contains(&size), "{}", case.name);
            }
        }
    }
}
