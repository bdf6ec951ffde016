//! The four servers of a bookinfo-shaped application: productpage calls details and reviews, reviews calls ratings.
//! As in the original, a part that cannot be had is named in the page and the page is served all the same.

use std::fmt::Write;

use crate::Result;
use crate::http::{self, Request};

/// One of the servers.
pub(crate) struct Role {
    name: String,
    /// Role and `host:port` of each server it calls, in order.
    calls: Vec<(String, String)>,
}

impl Role {
    /// `calls` as on the command line: `details=10.96.0.2:9080,reviews=..`.
    pub(crate) fn new(name: &str, calls: &str) -> Result<Self> {
        if own_words(name).is_none() {
            return Err(format!("no such role: {name}").into());
        }
        let pair = |call: &str| {
            call.split_once('=')
                .map(|(role, host)| (role.to_owned(), host.to_owned()))
        };
        let calls: Option<_> = calls
            .split(',')
            .filter(|call| !call.is_empty())
            .map(pair)
            .collect();
        Ok(Self {
            name: name.to_owned(),
            calls: calls.ok_or("--calls wants ROLE=HOST:PORT,..")?,
        })
    }

    /// Its page: its own words, then those of every server it calls, indented.
    pub(crate) fn answer(&self, request: &Request) -> String {
        let mut page = format!("{}: {}\n", self.name, own_words(&self.name).unwrap_or_default());
        for (role, host) in &self.calls {
            let part = match http::get(host, &request.path) {
                Ok(part) => part,
                Err(error) => format!("Error fetching {role}: {error}\n"),
            };
            for line in part.lines() {
                // Writing to a String cannot fail.
                let _infallible = writeln!(page, "  {line}");
            }
        }
        page
    }
}

fn own_words(role: &str) -> Option<&'static str> {
    Some(match role {
        "productpage" => "The Comedy of Errors",
        "details" => "paperback, 200 pages, 1595",
        "reviews" => "\"An extremely entertaining play by Shakespeare.\"",
        "ratings" => "5 stars, 4 stars",
        _ => return None,
    })
}
