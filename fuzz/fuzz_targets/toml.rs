#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| template_store::parsers::toml(text));
