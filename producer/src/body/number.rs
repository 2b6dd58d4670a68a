//! A JSON number where an integer is expected, read from its text: an `f64` would round it.

/// What a number is as an integer of 64 bits with a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Integer(i64),
    /// An integer that does not fit.
    Huge,
    /// Something between two integers.
    Fraction,
}

impl Number {
    /// Reads a number that JSON's grammar allows. `-0`, `1.0` and `1e3` are integers, whatever way
    /// they are written.
    pub(super) fn of(text: &str) -> Number {
        match text.parse() {
            Ok(integer) => Number::Integer(integer),
            Err(_) => of_decimal(text),
        }
    }
}

fn of_decimal(text: &str) -> Number {
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // The number is `digits`, without zeros at either end, times a power of ten.
    let digits = [whole, fraction].concat();
    let significant = digits.trim_end_matches('0');
    let zeros = digits.len() - significant.len();
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        return Number::Integer(0);
    }
    let Ok(exponent) = exponent.parse::<i64>() else {
        // No text in memory is long enough to make up for an exponent of more than 64 bits.
        return if exponent.starts_with('-') { Number::Fraction } else { Number::Huge };
    };
    let power = i128::from(exponent) + zeros as i128 - fraction.len() as i128;
    if power < 0 {
        return Number::Fraction;
    }
    let integer = u32::try_from(power).ok().and_then(|power| {
        let magnitude =
            significant.parse::<i128>().ok()?.checked_mul(10i128.checked_pow(power)?)?;
        i64::try_from(if is_negative { -magnitude } else { magnitude }).ok()
    });
    integer.map_or(Number::Huge, Number::Integer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Number::{self, Fraction, Huge, Integer};

    #[test]
    fn an_integer_is_one_however_it_is_written() {
        for (text, number) in [
            ("0", Integer(0)),
            ("-0", Integer(0)),
            ("-0.0e-5", Integer(0)),
            ("0e999999999999999999999", Integer(0)),
            ("1.0", Integer(1)),
            ("1e3", Integer(1000)),
            ("1.50E+1", Integer(15)),
            ("-2500e-2", Integer(-25)),
            ("9007199254740993.0", Integer(9_007_199_254_740_993)),
            ("9223372036854775807.000", Integer(i64::MAX)),
            ("-9223372036854775808", Integer(i64::MIN)),
            ("-9.223372036854775808e18", Integer(i64::MIN)),
            ("9223372036854775808", Huge),
            ("-9223372036854775809.0", Huge),
            ("1e30", Huge),
            ("-1e30", Huge),
            ("1e999999999999999999999", Huge),
            ("123456789012345678901234567890123456789012345678901234567890", Huge),
            ("1.5", Fraction),
            ("-0.1", Fraction),
            ("1e-1", Fraction),
            ("9223372036854775807.5", Fraction),
            ("1e-999999999999999999999", Fraction),
        ] {
            assert_eq!(Number::of(text), number, "{text}");
        }
        let long = format!("0.{}1e1000001", "0".repeat(1_000_000));
        assert_eq!(Number::of(&long), Integer(1));
    }

    proptest! {
        #[test]
        fn no_way_of_writing_an_integer_changes_it(integer: i64, places in 0usize..25) {
            let digits = integer.unsigned_abs().to_string();
            let padded = format!("{digits:0>width$}", width = places + 1);
            let (whole, fraction) = padded.split_at(padded.len() - places);
            let sign = if integer < 0 { "-" } else { "" };
            let point = if places > 0 { "." } else { "" };
            let zeros = "0".repeat(places);
            prop_assert_eq!(
                Number::of(&format!("{sign}{whole}{point}{fraction}e{places}")), Integer(integer)
            );
            prop_assert_eq!(
                Number::of(&format!("{sign}{digits}{zeros}e-{places}")), Integer(integer)
            );
            prop_assert_eq!(Number::of(&format!("{integer}.{zeros}0")), Integer(integer));
            prop_assert_eq!(Number::of(&format!("{integer}.{zeros}1")), Fraction);
        }
    }
}
