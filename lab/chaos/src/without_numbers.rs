/// Replaces each number by `#`, so that reasons that differ in numbers only count as one.
pub(crate) fn without_numbers(text: &str) -> String {
    let mut short = String::new();
    for c in text.chars().take(160) {
        if !c.is_ascii_digit() {
            short.push(c);
        } else if !short.ends_with('#') {
            short.push('#');
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_differ_in_numbers_only_are_one() {
        assert_eq!(
            without_numbers("id a-0-12 is fenced at 99"),
            without_numbers("id a-3-1 is fenced at 100")
        );
    }
}
