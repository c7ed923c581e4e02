"""The emoji that one can vote for: shortcode → character. Pure; what the programs of clusters/emojivoto agree on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_LINES = """
:doughnut: 🍩   :taco: 🌮        :pizza: 🍕       :burrito: 🌯     :hamburger: 🍔  :sushi: 🍣
:ramen: 🍜      :cookie: 🍪      :avocado: 🥑     :pineapple: 🍍   :watermelon: 🍉 :cherries: 🍒
:coffee: ☕     :beer: 🍺        :tropical_drink: 🍹 :cactus: 🌵   :four_leaf_clover: 🍀 :mushroom: 🍄
:cat: 🐱        :dog: 🐶         :fox: 🦊         :panda: 🐼       :penguin: 🐧    :octopus: 🐙
:whale: 🐳      :dolphin: 🐬     :turtle: 🐢      :snail: 🐌       :bee: 🐝        :butterfly: 🦋
:unicorn: 🦄    :dragon: 🐉      :owl: 🦉         :hedgehog: 🦔    :sloth: 🦥      :koala: 🐨
:joy: 😂        :sunglasses: 😎  :nerd_face: 🤓   :cowboy_hat: 🤠  :thinking: 🤔   :sleeping: 😴
:ghost: 👻      :robot: 🤖       :alien: 👽       :jack_o_lantern: 🎃 :clown: 🤡   :poop: 💩
:rocket: 🚀     :bicyclist: 🚴   :sailboat: ⛵    :steam_locomotive: 🚂 :tent: ⛺  :world_map: 🗺
:rainbow: 🌈    :sunny: ☀        :snowflake: ❄    :zap: ⚡         :fire: 🔥       :star: ⭐
:guitar: 🎸     :trumpet: 🎺     :art: 🎨         :microscope: 🔬  :telescope: 🔭  :floppy_disk: 💾
:lock: 🔒       :key: 🔑         :bulb: 💡        :balloon: 🎈     :gift: 🎁       :trophy: 🏆
:heart: ❤       :100: 💯         :tada: 🎉        :crossed_fingers: 🤞 :wave: 👋   :muscle: 💪
"""


def _read(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


EMOJI: Mapping[str, str] = MappingProxyType(_read(_LINES))
"""In the order in which they are shown."""
