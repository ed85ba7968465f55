"""The start page and the other applications in real browsers."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import expect

from browser.person import Person

Make = Callable[..., Person]


def test_the_start_page_counts_and_leads_to_every_application(person: Make) -> None:
    visitor = person()
    page = visitor.open("/")
    expect(page.locator("#count")).to_have_text("0")
    page.get_by_role("button", name="Count").click()
    expect(page.locator("#count")).to_have_text("1")
    links = [link.get_attribute("href") or "" for link in page.locator("a.card").all()]
    assert len(links) == 10
    for link in links:
        answer = page.goto(page.url.split("/", 3)[0] + "//" + page.url.split("/", 3)[2] + link)
        assert answer is None or answer.ok, link
        expect(page.locator("header a.home")).to_be_visible()
    visitor.open("/")


def test_the_last_piece_of_a_shop_is_sold_once(person: Make) -> None:
    pages = [person().open(f"/pages/cart.html#{name}") for name in ("ann", "ben")]
    for page in pages:
        for _ in range(7):  # 12 are there
            page.locator("article", has_text="Chair").get_by_role("button", name="Add").click()
        expect(page.locator("#total")).to_have_text("623.00 €")
    pages[0].get_by_role("button", name="Check out").click()
    expect(pages[0].locator("#news")).to_have_text("Thank you. This was order 1.")
    pages[1].get_by_role("button", name="Check out").click()
    expect(pages[1].locator("#news")).to_contain_text("not enough Chair is left")
    expect(pages[1].locator("#total")).to_have_text("623.00 €")
    expect(pages[1].locator("#left-Chair")).to_have_text("5 left")


def test_two_play_a_match_and_a_third_watches(person: Make) -> None:
    ann, ben, cleo = (person() for _ in range(3))
    pages = [somebody.open("/pages/game.html#final") for somebody in (ann, ben, cleo)]
    for name, page in zip(("Ann", "Ben"), pages, strict=False):
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Play").click()
        expect(page.locator("#players .player", has_text=name)).to_be_visible()
    for column in (3, 4, 3, 4, 3, 4, 3):
        page = next(page for page in pages if page.locator("#board.mine").count())
        moves = page.locator("#board .X, #board .O").count()
        page.locator("#board button").nth(column).click()
        for each in pages:
            expect(each.locator("#board .X, #board .O")).to_have_count(moves + 1)
    for page in pages:
        expect(page.locator("#news")).to_have_text("Ann wins: four in a row")
        expect(page.locator("#board .won")).to_have_count(4)
    expect(pages[0].locator("#watching")).to_have_text("1 watching")


def test_a_rule_of_the_house_turns_the_heater_on_and_a_silent_device_is_offline(person: Make) -> None:
    page = person().open("/pages/home.html#villa")
    expect(page.locator("#devices .device")).to_have_count(5)
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#rules li")).to_have_text(["When thermometer is below 19, turn the heater onRemove"])
    page.locator("#plugs input").first.fill("12")
    heater = page.locator('#devices [data-device="heater"] .pill')
    expect(heater).to_have_text("on")
    page.locator("#plugs .device", has_text="fan").get_by_role("button").click()
    expect(page.locator('#devices [data-device="fan"] .pill')).to_have_text("offline")


def test_a_post_reaches_a_follower_who_is_looking(person: Make) -> None:
    ann, ben = person().open("/pages/feed.html#ann"), person().open("/pages/feed.html#ben")
    ben.get_by_label("Account to follow").fill("ann")
    ben.get_by_role("button", name="Follow").click()
    expect(ann.locator("#followers")).to_have_text("1")
    ann.get_by_label("Your post").fill("The first swallow is back.")
    ann.get_by_role("button", name="Post").click()
    expect(ben.locator("article p")).to_have_text(["The first swallow is back."])
    expect(ann.locator("article p")).to_have_text(["The first swallow is back."])


def test_readers_of_an_article_see_each_others_comments(person: Make) -> None:
    ann, ben = person().open("/pages/comments.html"), person().open("/pages/comments.html")
    ann.get_by_label("Your name").fill("Ann")
    ann.get_by_label("Your comment").fill("I read it twice.")
    ann.get_by_role("button", name="Comment").click()
    for page in (ann, ben):
        expect(page.locator("li p")).to_have_text(["I read it twice."])


def test_what_one_edge_writes_the_other_one_answers(person: Make) -> None:
    page = person().open("/pages/kv.html#shop")
    rome, oslo = page.get_by_role("region", name="Rome"), page.get_by_role("region", name="Oslo")
    rome.get_by_placeholder("a value").fill("42")
    rome.get_by_role("button", name="Write").click()
    for edge in (rome, oslo):
        expect(edge.locator(".value")).to_have_text("42")


def test_a_database_splits_its_ranges_while_it_is_filled(person: Make) -> None:
    page = person().open("/pages/chunked.html")
    page.get_by_role("button", name="Insert 200").click()
    expect(page.locator("#total")).to_have_text("200")
    expect(page.locator("#list li")).not_to_have_count(1)
    page.get_by_role("button", name="Scan").click()
    expect(page.locator("#found")).not_to_be_empty()


def test_replicas_that_were_cut_apart_say_the_same_when_they_are_joined(person: Make) -> None:
    page = person().open("/pages/crdt.html#plan")
    replicas = page.locator("#places > *")
    expect(replicas).to_have_count(3)
    replicas.nth(0).get_by_role("button", name="Cut off").click()
    for number, item in ((0, "tea"), (1, "bread")):
        replicas.nth(number).get_by_placeholder("something to bring").fill(item)
        replicas.nth(number).get_by_role("button", name="Add").click()
    there = ".items li:not(.missing)"  # the page shows, too, what only other replicas have
    expect(replicas.nth(2).locator(there)).to_have_text([re.compile("^bread")])
    replicas.nth(0).get_by_role("button", name="Connect").click()
    for number in range(3):
        expect(replicas.nth(number).locator(there)).to_have_text([re.compile("^bread"), re.compile("^tea")])
