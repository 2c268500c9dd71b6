//! Times in columns that are declared DATE, DATETIME or TIMESTAMP, as RFC 3339 has them. What is no time stays what it
//! is.

/// A text that is a time, in RFC 3339: `2024-05-01`, `2024-05-01 10:20`, `2024-05-01T10:20:30.5+02:00`, …
pub fn normalize(text: &str) -> Option<String> {
    let (date, rest) = text.split_at_checked(10)?;
    let number = |part: &str, width: usize, range: std::ops::RangeInclusive<u32>| {
        let ok = part.len() == width && part.bytes().all(|b| b.is_ascii_digit());
        ok.then(|| part.parse().ok()).flatten().filter(|n| range.contains(n))
    };
    let mut parts = date.split('-');
    let year = number(parts.next()?, 4, 0..=9999)?;
    let month = number(parts.next()?, 2, 1..=12)?;
    let day = number(parts.next()?, 2, 1..=31)?;
    if parts.next().is_some() || day > days_in(year, month) {
        return None;
    }
    if rest.is_empty() || rest == "Z" {
        return Some(format!("{date}T00:00:00Z"));
    }
    let rest = rest.strip_prefix([' ', 'T'])?;
    let split = rest.find(['Z', '+', '-']).unwrap_or(rest.len());
    let (time, zone) = rest.split_at(split);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut parts = clock.split(':');
    number(parts.next()?, 2, 0..=23)?;
    number(parts.next()?, 2, 0..=59)?;
    let seconds = parts.next();
    if let Some(seconds) = seconds {
        number(seconds, 2, 0..=59)?;
    }
    if parts.next().is_some() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if fraction.is_empty() && time.contains('.')
        || fraction.len() > 9
        || seconds.is_none() && !fraction.is_empty()
    {
        return None;
    }
    let zone = match zone {
        "" | "Z" | "+00:00" | "-00:00" => "Z",
        zone => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            number(hours, 2, 0..=23)?;
            number(minutes, 2, 0..=59)?;
            zone
        }
    };
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let seconds = if seconds.is_none() { ":00" } else { "" };
    Some(format!("{date}T{clock}{seconds}{dot}{fraction}{zone}"))
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Unix time: in seconds, or in milliseconds where it has more than twelve digits. `None` before year 0 and after 9999.
pub fn from_unix(value: i64) -> Option<String> {
    let (seconds, millis) = match value {
        -1_000_000_000_000..=1_000_000_000_000 => (value, 0),
        _ => (value.div_euclid(1000), value.rem_euclid(1000)),
    };
    // "chrono-compatible low-level date algorithms", civil_from_days.
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    if !(0..=9999).contains(&year) {
        return None;
    }
    let fraction =
        if millis == 0 { String::new() } else { format!(".{millis:03}").trim_end_matches('0').to_owned() };
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (text, expected) in [
            ("2024-05-01", "2024-05-01T00:00:00Z"),
            ("2024-02-29 10:20", "2024-02-29T10:20:00Z"),
            ("2024-05-01 10:20:30", "2024-05-01T10:20:30Z"),
            ("2024-05-01T10:20:30Z", "2024-05-01T10:20:30Z"),
            ("2024-05-01 10:20:30.250", "2024-05-01T10:20:30.25Z"),
            ("2024-05-01 10:20:30.000", "2024-05-01T10:20:30Z"),
            ("2024-05-01 10:20:30+00:00", "2024-05-01T10:20:30Z"),
            ("2024-05-01T10:20:30.5-05:30", "2024-05-01T10:20:30.5-05:30"),
        ] {
            assert_eq!(normalize(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "now",
            "2024",
            "2023-02-29",
            "2024-13-01",
            "2024-05-01x",
            "2024-05-01 25:00",
            "10:20:30",
            "2024-05-01 10",
            "2024-05-01 10:20:30.",
            "2024-05-01 10:20:30+1",
            "2024-05-01 10:20:30+é0:00",
            "äääää-05-01",
            "2024-05-1é",
        ] {
            assert_eq!(normalize(text), None, "{text}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(from_unix(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(from_unix(-1).as_deref(), Some("1969-12-31T23:59:59Z"));
        assert_eq!(from_unix(1_795_437_123).as_deref(), Some("2026-11-23T12:32:03Z"));
        assert_eq!(from_unix(1_795_437_123_250).as_deref(), Some("2026-11-23T12:32:03.25Z"));
        assert_eq!((from_unix(i64::MAX), from_unix(i64::MIN)), (None, None));
    }
}
