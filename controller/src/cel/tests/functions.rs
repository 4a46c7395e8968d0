//! What functions do with values.

use super::{gives, holds};

#[test]
fn strings_have_their_functions() {
    gives(&[
        ("self.text.contains('ell')", "true"),
        ("self.text.startsWith('he') && self.text.endsWith('lo')", "true"),
        ("self.text.size() == size(self.text)", "true"),
        ("'héllo'.charAt(1) + 'ab'.charAt(2)", "é"),
        ("'abc'.charAt(4)", "error: index out of range: 4"),
        ("'hello'.indexOf('l')", "2"),
        ("'hello'.indexOf('l', 3)", "3"),
        ("'hello'.indexOf('x')", "-1"),
        ("'hello'.indexOf('l', 9)", "error: index out of range: 9"),
        ("'hello'.lastIndexOf('l')", "3"),
        ("'hello'.lastIndexOf('l', 2)", "2"),
        ("'hello'.lastIndexOf('')", "5"),
        ("'éaé'.lastIndexOf('é')", "2"),
        ("'TacO é'.lowerAscii() + 'x'.upperAscii()", "taco éX"),
        ("'a-b-c'.replace('-', '+')", "a+b+c"),
        ("'a-b-c'.replace('-', '+', 1)", "a+b-c"),
        ("'ab'.replace('', '_')", "_a_b_"),
        ("'a,b,c'.split(',')", "[a, b, c]"),
        ("'a,b,c'.split(',', 2)", "[a, b,c]"),
        ("'a,b'.split(',', 0)", "[]"),
        ("'abc'.split('')", "[a, b, c]"),
        ("'abc'.split('', 2)", "[a, bc]"),
        ("'tacocat'.substring(4)", "cat"),
        ("'tacocat'.substring(0, 4)", "taco"),
        (
            "'tacocat'.substring(4, 2)",
            "error: invalid substring range. start: 4, end: 2",
        ),
        ("'abc'.substring(4)", "error: index out of range: 4"),
        ("' \\t x\\n'.trim()", "x"),
        ("['a', 'b'].join() + ['c', 'd'].join('-')", "abc-d"),
        ("'abc'.reverse()", "cba"),
        (r#"strings.quote('a"b\n')"#, r#""a\"b\n""#),
        (
            "self.text.matches('^h.*o$') && matches('a1', '[a-z]\\\\d')",
            "true",
        ),
        ("'é'.matches('^\\\\w$')", "false"),
        ("'a[b'.matches('^[[a]+b$')", "true"),
        ("'[a'.matches('^[[a]+$') && 'a&b'.matches('^[a-c&&]+$')", "true"),
        ("'x y'.matches('x\\\\by') || 'x y'.matches('x\\\\b')", "true"),
        ("'a.b'.matches('^\\\\Qa.b\\\\E$')", "true"),
        ("'a1b22'.find('[0-9]+')", "1"),
        ("'a1b22'.findAll('[0-9]+')", "[1, 22]"),
        ("'a1b22'.findAll('[0-9]+', 1)", "[1]"),
        ("self.text.matches(self.text)", "true"),
        (
            "'a'.matches('(' + self.text)",
            "error: error parsing regexp: `(hello`",
        ),
    ]);
}

#[test]
fn values_are_formatted() {
    gives(&[
        ("'%s is %d'.format(['x', 3])", "x is 3"),
        (
            "'%s'.format([[dyn(1), 'a', 2.5, null, true]])",
            "[1, a, 2.5, null, true]",
        ),
        (
            "'%s'.format([{'b': dyn(1), 'a': duration('90s')}])",
            "{a: 90s, b: 1}",
        ),
        (
            "'%.2f %f %.1e'.format([1.005, 2, 12345.0])",
            "1.00 2.000000 1.2e+04",
        ),
        (
            "'%b %b %o %x %X'.format([5, true, 8, 255, 255])",
            "101 1 10 ff FF",
        ),
        ("'%x'.format(['hi'])", "6869"),
        ("'100%%'.format([])", "100%"),
        ("'%s'.format([])", "error: index 0 out of range"),
        (
            "'%d'.format(['x'])",
            "error: error during formatting: clause 'd' cannot be used on a value of type string",
        ),
        (
            "'%'.format([1])",
            "error: could not parse formatting clause: unexpected end of string",
        ),
        (
            "'%.999f'.format([1.0])",
            "error: could not parse formatting clause: error while parsing precision",
        ),
    ]);
}

#[test]
fn types_convert() {
    gives(&[
        ("int('42') + int(3.9) + int(2u)", "47"),
        ("uint('42')", "42"),
        ("double('1.5') + double(1) + double(2u)", "4.5"),
        (
            "string(1) + string(2u) + string(1.5) + string(true) + string(b'x')",
            "121.5truex",
        ),
        (
            "string(1e21) + ' ' + string(0.00001) + ' ' + string(3.0)",
            "1e+21 1e-05 3",
        ),
        (
            "string(b'\\xff')",
            "error: invalid UTF-8 in bytes, cannot convert to string",
        ),
        ("bool('true') && !bool('F')", "true"),
        (
            "bool('x')",
            "error: type conversion error from 'string' to 'bool': \"x\"",
        ),
        ("bytes('é') == b'\\xc3\\xa9'", "true"),
        (
            "type(1) == int && type('') == string && type([]) == list && type({}) == map",
            "true",
        ),
        (
            "type(1.0) == double && type(null) == null_type && type(type(1)) == type",
            "true",
        ),
        ("type(self.when) == google.protobuf.Timestamp", "true"),
        ("int(timestamp('1970-01-01T00:01:00Z'))", "60"),
        (
            "string(timestamp(60)) + string(duration('1.5s'))",
            "1970-01-01T00:01:00Z1.5s",
        ),
        ("string(duration('-90m'))", "-5400s"),
    ]);
}

#[test]
fn times_have_parts_and_lengths() {
    gives(&[
        ("self.when.getFullYear()", "2024"),
        ("self.when.getMonth()", "1"),
        ("self.when.getDate()", "29"),
        ("self.when.getDayOfMonth()", "28"),
        ("self.when.getDayOfYear()", "59"),
        ("self.when.getDayOfWeek()", "4"),
        ("self.when.getHours()", "12"),
        ("self.when.getMinutes()", "34"),
        ("self.when.getSeconds()", "56"),
        ("self.when.getMilliseconds()", "789"),
        ("self.when.getHours('+02:00')", "14"),
        ("self.when.getHours('-03:30')", "9"),
        ("self.when.getHours('Nowhere/Land')", "error: unknown time zone"),
        ("self.long.getHours() * 1000 + self.long.getMinutes()", "1090"),
        ("self.long.getSeconds()", "5400"),
        ("duration('1.5s').getMilliseconds()", "1500"),
        ("self.when + duration('1h') > self.when", "true"),
        (
            "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')",
            "true",
        ),
        ("self.when - duration('1h') < self.when", "true"),
        ("duration('1h') - duration('30m') == duration('1800s')", "true"),
        ("duration('1m') + duration('1ms') < duration('1m2ms')", "true"),
        ("timestamp(self.text)", "error: invalid timestamp"),
        ("duration(self.text)", "error: time: invalid duration \"hello\""),
        (
            "timestamp('9999-12-30T21:59:59Z') + duration('1h')",
            "error: timestamp overflow",
        ),
        (
            "duration('2562047h') + duration('2562047h')",
            "error: duration overflow",
        ),
    ]);
}

#[test]
fn lists_have_aggregates() {
    gives(&[
        ("[1, 2, 2].isSorted() && !self.words.isSorted()", "true"),
        ("[1, 2].sum() + [].sum()", "3"),
        ("[1.5, 2.0].sum()", "3.5"),
        ("[duration('1m'), duration('1s')].sum()", "61s"),
        ("[3, 1, 2].min() + [3, 1, 2].max()", "4"),
        ("self.words.min() + self.words.max()", "ac"),
        ("[].min()", "error: min called on empty list"),
        ("['a', 'b', 'a'].indexOf('a')", "0"),
        ("['a', 'b', 'a'].lastIndexOf('a')", "2"),
        ("['a'].indexOf('z')", "-1"),
        (
            "sets.contains([1, 2, 3], [1, 3]) && !sets.contains([1], [2])",
            "true",
        ),
        (
            "sets.equivalent([1, 1, 2], [2, 1]) && !sets.equivalent([1], [1, 2])",
            "true",
        ),
        (
            "sets.intersects([1, 2], [2, 3]) && !sets.intersects([1], [])",
            "true",
        ),
        ("[1] + [2] == [1, 2] && [1, 2] != [2, 1]", "true"),
        (
            "self.set == ['y', 'x'] && self.set + ['x', 'z'] == ['x', 'y', 'z']",
            "true",
        ),
        ("self.words == ['a', 'b', 'c']", "false"),
        ("{'a': [1]} == {'a': [1]} && {'a': 1} != {'a': 2}", "true"),
        ("{'a': 1, 'a': 2}", "error: insert failed: key a already exists"),
        ("self.labels == {'tier': 'front', 'app': 'web'}", "true"),
    ]);
}

#[test]
fn kubernetes_libraries_are_there() {
    holds(&[
        "quantity('1Gi').isGreaterThan(quantity('1G'))",
        "quantity('500m').isLessThan(quantity('1'))",
        "quantity('1k').compareTo(quantity('1000')) == 0 && quantity('1k') == quantity('1000')",
        "quantity('1').add(quantity('2')).sub(1).asInteger() == 2",
        "quantity('50k').add(20) == quantity('50020')",
        "!quantity('1.5').isInteger() && quantity('1.5').asApproximateFloat() == 1.5",
        "quantity('-1').sign() == -1 && quantity('0').sign() == 0",
        "isQuantity('1.3G') && !isQuantity('1.3GG')",
        "isIP('10.0.0.1') && isIP('::1') && !isIP('10.0.0.256') && !isIP('::ffff:1.2.3.4')",
        "ip('10.0.0.1').family() == 4 && ip('::1').family() == 6",
        "ip.isCanonical('::1') && !ip.isCanonical('0::1')",
        "ip('127.0.0.1').isLoopback() && ip('0.0.0.0').isUnspecified()",
        "ip('224.0.0.1').isLinkLocalMulticast() && ip('fe80::1').isLinkLocalUnicast()",
        "ip('8.8.8.8').isGlobalUnicast() && !ip('169.254.0.1').isGlobalUnicast()",
        "string(ip('::1')) == '::1' && ip('10.0.0.1') == ip('10.0.0.1')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsIP(ip('10.1.2.3'))",
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && !cidr('10.1.0.0/16').containsCIDR(cidr('10.0.0.0/8'))",
        "string(cidr('10.1.2.3/8').masked()) == '10.0.0.0/8' && cidr('10.1.2.3/8').ip() == ip('10.1.2.3')",
        "cidr('::/64').prefixLength() == 64 && isCIDR('::/0') && !isCIDR('10.0.0.0') && !isCIDR('10.0.0.0/33')",
        "!cidr('10.0.0.0/8').containsIP('::1') && !isCIDR('10.0.0.0/255.0.0.0') && !isCIDR('10.0.0.0/08')",
        "isURL('https://example.com:80/a?b=c') && isURL('/a/b') && !isURL('a/b') && !isURL('http://a b/')",
        "url('https://example.com:80/').getHost() == 'example.com:80'",
        "url('https://[::1]:80/').getHostname() == '::1' && url('https://[::1]:80/').getPort() == '80'",
        "url('HTTPS://x').getScheme() == 'https' && url('https://x/a b').getEscapedPath() == '/a%20b'",
        "url('https://x/?k=a+b&k=%41&l').getQuery() == {'k': ['a b', 'A'], 'l': ['']}",
        "!format.dns1123Label().validate('my-label').hasValue()",
        "format.dns1123Label().validate('My').hasValue()",
        "format.named('dns1123Subdomain').hasValue() && !format.named('x').hasValue()",
        "format.named('uuid').value().validate('x').value() == ['does not match the UUID format']",
        "!format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue()",
        "!format.date().validate('2021-01-01').hasValue() && format.datetime().validate('2021-01-01').hasValue()",
        "!format.byte().validate('aGk=').hasValue() && !format.dns1123LabelPrefix().validate('a-').hasValue()",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-rc.1').compareTo(semver('1.0.0')) == -1",
        "isSemver('1.0.0-a+b') && !isSemver('v1.0.0') && isSemver('v1.0', true) && !isSemver('01.0.0')",
        "semver('1.2.3').major() == 1 && semver('1.2.3').minor() == 2 && semver('1.2.3').patch() == 3",
        "semver('1.0.0-alpha.2').isLessThan(semver('1.0.0-alpha.10'))",
    ]);
    gives(&[
        (
            "quantity('x')",
            "error: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "quantity('1.5').asInteger()",
            "error: cannot convert value to integer",
        ),
        (
            "ip('x')",
            "error: IP Address \"x\" parse error during conversion from string: unable to parse IP",
        ),
        (
            "cidr(self.text)",
            "error: network address parse error during conversion from string: \"hello\"",
        ),
    ]);
}
