#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| template_store::parsers::frames(bytes));
