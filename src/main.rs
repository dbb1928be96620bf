//! The program `template-store`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
