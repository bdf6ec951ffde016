//! The binary `ztunnel`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ztunnel::cli::main()
}
