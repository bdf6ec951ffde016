//! Which lines are wanted, as people write it: `info`, `info,proxy=debug`, `access:off,debug`.
//!
//! The filter library takes any bare word for a module name and then says nothing; a misspelt level must be
//! an error here.

use tracing_subscriber::EnvFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Why levels were not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// A level has another name.
    #[error("unknown level `{given}`; one of off, error, warn, info, debug, trace")]
    Level {
        /// The word that should have been a level.
        given: String,
    },
    /// The filter library refuses a directive.
    #[error("`{given}` is not understood; write LEVEL or SCOPE=LEVEL, separated by commas")]
    Directive {
        /// The text as given.
        given: String,
    },
    /// The log no longer exists.
    #[error("the log has ended")]
    Gone,
}

/// Levels that were understood.
pub(super) struct Levels {
    /// What they let through.
    pub(super) filter: EnvFilter,
    /// How they are shown: each directive as `LEVEL` or `SCOPE=LEVEL`.
    pub(super) text: String,
}

/// Reads levels; empty text means `info`.
pub(super) fn parse(text: &str) -> Result<Levels, LevelError> {
    let mut shown = Vec::new();
    let mut directives = Vec::new();
    for directive in text
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty())
    {
        let Some((scope, level)) = split(directive) else {
            shown.push(known(directive)?.to_owned());
            continue;
        };
        if !is_scope(scope) {
            return Err(LevelError::Directive {
                given: directive.to_owned(),
            });
        }
        let directive = format!("{scope}={}", known(level)?);
        // Lines show the scope without the crate's name, so it may be left out here.
        directives.push(format!("{}{directive}", super::line::CRATE_PREFIX));
        shown.push(directive);
    }
    if shown.is_empty() {
        shown.push("info".to_owned());
    }
    directives.extend_from_slice(&shown);
    let filter = EnvFilter::builder()
        .parse(directives.join(","))
        .map_err(|_| LevelError::Directive {
            given: text.to_owned(),
        })?;
    Ok(Levels {
        filter,
        text: shown.join(","),
    })
}

/// Splits a scope from its level at `=`, or at a `:` that is not part of `::`.
fn split(directive: &str) -> Option<(&str, &str)> {
    directive.rsplit_once('=').or_else(|| {
        directive
            .rsplit_once(':')
            .filter(|(scope, _)| !scope.ends_with(':'))
    })
}

/// Whether this can be the path of a module. The filter library also knows filters by span and field, which
/// a log without spans has no use for.
fn is_scope(scope: &str) -> bool {
    !scope.is_empty()
        && scope
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
}

fn known(level: &str) -> Result<&str, LevelError> {
    let level = level.trim();
    LEVELS
        .iter()
        .find(|known| known.eq_ignore_ascii_case(level))
        .copied()
        .ok_or_else(|| LevelError::Level {
            given: level.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        parse(text).unwrap().text
    }

    fn refused(text: &str) -> LevelError {
        parse(text).err().unwrap()
    }

    #[test]
    fn no_levels_mean_info() {
        assert_eq!(shown(""), "info");
        assert_eq!(shown(" , "), "info");
    }

    #[test]
    fn a_misspelt_level_is_an_error_and_not_a_module() {
        assert_eq!(
            refused("debgu"),
            LevelError::Level {
                given: "debgu".to_owned()
            }
        );
        assert_eq!(
            refused("info,proxy=loud"),
            LevelError::Level {
                given: "loud".to_owned()
            }
        );
        assert_eq!(
            refused("hbone::pool"),
            LevelError::Level {
                given: "hbone::pool".to_owned()
            }
        );
    }

    #[test]
    fn what_is_no_scope_is_an_error() {
        assert_eq!(
            refused("a b{=debug"),
            LevelError::Directive {
                given: "a b{=debug".to_owned()
            }
        );
    }

    #[test]
    fn istios_colon_is_understood() {
        assert_eq!(shown("info,proxy:debug"), "info,proxy=debug");
        assert_eq!(shown("hbone::pool:TRACE"), "hbone::pool=trace");
        assert_eq!(shown("access=off,h2=warn,debug"), "access=off,h2=warn,debug");
    }
}
