//! What the store promises, tried through its library and its program.

mod activation;
mod counts;
mod disk;
mod identity;
mod interning;
mod oracle;
mod output;
mod powercut;
mod process;
mod program;
mod publish;
mod removal;
mod reuse;
mod run;
mod sealing;
mod single_flight;
mod support;
